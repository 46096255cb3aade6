"""Chat completions as a simulated provider reads and writes them: everything follows from the prompt."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CHARS_PER_TOKEN = 4
TOKENS_PER_MESSAGE = 4
COMPLETION_TOKENS_MIN, COMPLETION_TOKENS_MAX = 20, 180
CHUNKS = 10

_FILLER = "It depends on what you ask for, and here is why that is so. " * 16


@dataclass(frozen=True, slots=True)
class Asked:
    """One request: what it costs at arrival, what its completion will cost, and whether it was seen before."""

    model: str
    prompt: str
    prompt_tokens: int
    completion_tokens: int
    schema: Mapping[str, Any] | None
    stream: bool = False

    @property
    def digest(self) -> bytes:
        """Return what two equal prompts share."""
        return hashlib.blake2b(self.prompt.encode("utf-8", "replace"), digest_size=12).digest()


def read(body: bytes) -> Asked:
    """Read a request's body; ValueError, in words for the client, if it is none."""
    try:
        request = json.loads(body)
        texts = [_text(message.get("content")) for message in request["messages"]]
        model, max_tokens = request["model"], request.get("max_completion_tokens") or request.get("max_tokens")
        response_format = request.get("response_format") or {}
        schema = response_format.get("json_schema", {}).get("schema")
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise ValueError(f"this is no chat completion request: {type(exc).__name__}: {exc}") from exc
    if not texts or not isinstance(model, str):
        raise ValueError("a chat completion request needs a model and messages")
    prompt = "\x1e".join(texts)
    return Asked(
        model=model,
        prompt=prompt,
        prompt_tokens=prompt_tokens(texts),
        completion_tokens=completion_tokens(prompt, max_tokens=max_tokens),
        schema={} if schema is None and response_format.get("type") == "json_object" else schema,
        stream=bool(request.get("stream")),
    )


def prompt_tokens(texts: list[str]) -> int:
    """Return what messages of these texts cost."""
    return sum(len(text) // CHARS_PER_TOKEN + TOKENS_PER_MESSAGE for text in texts)


def completion_tokens(prompt: str, *, max_tokens: int | None) -> int:
    """Return what the answer to this prompt costs: 20 to 180, all equally likely, and never above the bound."""
    choices = COMPLETION_TOKENS_MAX - COMPLETION_TOKENS_MIN + 1
    chosen = COMPLETION_TOKENS_MIN + zlib.crc32(prompt.encode("utf-8", "replace")) % choices
    return chosen if max_tokens is None else min(chosen, max_tokens)


def completion(asked: Asked, *, number: int) -> bytes:
    """Return the body of the answer: as long as it costs, or the smallest value that fits the schema."""
    choice = {"index": 0, "message": {"role": "assistant", "content": _reply(asked)}, "finish_reason": "stop"}
    told = {"choices": [choice], "usage": _usage(asked)}
    return json.dumps(_head(asked, number=number, kind="chat.completion") | told).encode()


def chunks(asked: Asked, *, number: int) -> list[bytes]:
    """Return the events of the answer as a stream: a tenth of it each, the reason of its end, usage, and `[DONE]`."""
    head = _head(asked, number=number, kind="chat.completion.chunk")
    text = _reply(asked)
    size = max(1, -(-len(text) // CHUNKS))
    deltas = [({"content": text[begin : begin + size]}, None) for begin in range(0, len(text), size)]
    told = [
        head | {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}
        for delta, reason in (*deltas, ({}, "stop"))
    ]
    told.append(head | {"choices": [], "usage": _usage(asked)})
    return [f"data: {json.dumps(each)}\n\n".encode() for each in told] + [b"data: [DONE]\n\n"]


def _head(asked: Asked, *, number: int, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{number}", "object": kind, "created": 0, "model": asked.model}


def _reply(asked: Asked) -> str:
    if asked.schema is None:
        return _FILLER[: asked.completion_tokens * CHARS_PER_TOKEN]
    return json.dumps(_instance(asked.schema, zlib.crc32(asked.prompt.encode("utf-8", "replace"))))


def _usage(asked: Asked) -> dict[str, int]:
    return {
        "prompt_tokens": asked.prompt_tokens,
        "completion_tokens": asked.completion_tokens,
        "total_tokens": asked.prompt_tokens + asked.completion_tokens,
    }


def error(message: str, *, kind: str, code: str | None = None) -> bytes:
    """Return the body of an error, as OpenAI words it."""
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}}).encode()


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content)
    return content or ""


def _instance(schema: Mapping[str, Any], pick: int) -> Any:
    """Return a small value that fits the plain keywords of a JSON Schema; `pick` chooses among an enum's."""
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][pick % len(schema["enum"])]
    for keyword in ("anyOf", "oneOf"):
        if keyword in schema:
            return _instance(schema[keyword][0], pick)
    match schema.get("type"):
        case "array":
            return [_instance(schema.get("items", {}), pick) for _ in range(schema.get("minItems", 0))]
        case "string":
            return "x" * schema.get("minLength", 1)
        case "integer" | "number":
            return schema.get("minimum", 0)
        case "boolean":
            return False
        case "null":
            return None
        case _:
            properties = schema.get("properties", {})
            return {name: _instance(properties.get(name, {}), pick) for name in schema.get("required", properties)}
