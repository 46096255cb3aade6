"""OpenAI's chat completion, whole or in chunks: how requests say tools, and what answers say."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable
from typing import Any

from schemas.chat import ToolCall, Usage
from worker.providers.base import ChatReply, ChatRequest
from worker.providers.chunks import joined
from worker.providers.completion_forms import Call, Completion, Message
from worker.providers.errors import ReplyMalformed
from worker.providers.exchange import Answer
from worker.providers.http_errors import words_of
from worker.providers.texts import mended

# What a database column holds.
_TOKENS_MAX = 2**31 - 1


def tools_body(request: ChatRequest) -> list[dict[str, Any]] | None:
    """Return the tools of a request in OpenAI's form, None if it has none."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description,
                "parameters": tool.parameters,
                **({} if tool.strict is None else {"strict": tool.strict}),
            },
        }
        for tool in request.tools
    ] or None


def tool_choice_body(request: ChatRequest) -> str | dict[str, Any] | None:
    """Return the tool_choice of a request in OpenAI's form."""
    choice = request.tool_choice
    return choice if choice is None or isinstance(choice, str) else choice.model_dump()


def response_format_body(request: ChatRequest) -> dict[str, Any] | None:
    """Return what the job itself asked for, else the schema of its output, else None."""
    if request.response_format is not None:
        return request.response_format
    if request.response_schema is None:
        return None
    return {
        "type": "json_schema",
        "json_schema": {"name": "output", "strict": True, "schema": request.response_schema},
    }


def given(body: dict[str, Any]) -> dict[str, Any]:
    """Return the body without what nobody set."""
    return {name: value for name, value in body.items() if value is not None}


def read_completion(answer: Answer, *, name: str, request: ChatRequest) -> ChatReply:
    """Read the reply out of an answer, whole or streamed; raises a ProviderError.

    A hosted assistant's session and the passages that it retrieved become `thread_ref` and
    `retrieved`.
    """
    stream = answer.stream
    completion = _parsed(answer) if stream is None else joined(stream, name=name, request=request)
    if not completion.choices:
        raise ReplyMalformed("a completion without choices", http_status=answer.status)
    first, *others = sorted(completion.choices, key=lambda choice: choice.index or 0)
    passages = completion.index_context_info if isinstance(completion.index_context_info, list) else []
    return ChatReply(
        content=mended(first.message.content or ""),
        finish_reason=first.finish_reason,
        model=completion.model or "",
        usage=_usage(completion.usage),
        refusal=mended(first.message.refusal),
        tool_calls=_tool_calls(first.message),
        alternatives=tuple(mended(choice.message.content or "") for choice in others),
        thread_ref=str(completion.session_id) if request.hosted and completion.session_id else None,
        retrieved=tuple(mended(passage) for passage in passages if isinstance(passage, dict)) if request.hosted else (),
        told=answer.told,
        sent_after_s=answer.sent_after_s,
    )


def no_completion(answer: Answer, what: str) -> ReplyMalformed:
    """Return the error for a 2xx answer that is not what it should be; some proxies answer 200 with an error."""
    try:
        words = words_of(json.loads(answer.content))
    except (ValueError, RecursionError):
        words = ""
    words = words or answer.content.decode(errors="replace") or "an empty body"
    return ReplyMalformed(f"a 2xx answer without {what}: {words}", http_status=answer.status)


def _parsed(answer: Answer) -> Completion:
    try:
        # Not Pydantic's own reader, which refuses half a character.
        return Completion.model_validate(json.loads(answer.content))
    except (ValueError, RecursionError) as exc:
        raise no_completion(answer, "a completion") from exc


def _tool_calls(message: Message) -> tuple[ToolCall, ...]:
    calls = list(message.tool_calls or ())
    if not calls and message.function_call is not None:
        calls = [Call(function=message.function_call)]
    return tuple(_with_own_ids(calls))


def _with_own_ids(calls: Iterable[Call]) -> Iterable[ToolCall]:
    """Give each call an id that no other has, for answers name it so; some servers give none, or one twice."""
    seen: set[str] = set()
    for call in calls:
        call_id = call.id if call.id and call.id not in seen else f"call_{uuid.uuid4().hex}"
        seen.add(call_id)
        yield ToolCall(id=call_id, name=call.function.name or "", arguments=mended(call.function.arguments or "{}"))


def _usage(value: Any) -> Usage | None:
    """Return the count, None if there is none: the completion is paid for, whatever stands beside it."""
    counts = value if isinstance(value, dict) else {}
    prompt_tokens, completion_tokens = map(_tokens, (counts.get("prompt_tokens"), counts.get("completion_tokens")))
    if prompt_tokens is None and completion_tokens is None:
        return None
    return Usage(prompt_tokens=prompt_tokens or 0, completion_tokens=completion_tokens or 0)


def _tokens(count: Any) -> int | None:
    believable = isinstance(count, int | float) and not isinstance(count, bool) and 0 <= count <= _TOKENS_MAX
    return int(count) if believable else None
