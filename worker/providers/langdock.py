"""Langdock's assistants and agents, which run their own tools (CONTRACT.md 3).

Two forms of one API. `assistant`: messages are `{role, content}`, the answer is a `result`
array. `agent`, its successor: `agentId`/`agent`, messages are the Vercel AI SDK's UIMessages
`{id, role, parts}` (Langdock's migration guide). The guide and clients disagree on the form
of an agent's answer (one UIMessage, `messages`, or `result`), and none settles the event
names of a stream; all known forms are read. Inferred: how a history's tool calls and images
are written, and the `tool-…` events.
"""

from __future__ import annotations

import json
import mimetypes
from collections.abc import Iterable, Sequence
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx

from schemas.chat import ImagePart, Message, TextPart
from schemas.lane import provider_name
from schemas.output import OutputSpec
from worker.providers.base import ChatReply, ChatRequest, HostedCall, OnDelta
from worker.providers.chunks import lost
from worker.providers.completion import given, no_completion
from worker.providers.errors import RequestRefused, StructuredOutputUnsupported, ToolsUnsupported
from worker.providers.exchange import Answer, post
from worker.providers.folding import system_text, without_system
from worker.providers.http_errors import error_in_stream, presentable
from worker.providers.sse import Stream
from worker.providers.texts import mended
from worker.providers.transcript import Transcript, telling

Api = Literal["assistant", "agent"]


class Langdock:
    """The service at `https://api.langdock.com`, or a deployment's `<url>/api/public`.

    It keeps no threads: the whole conversation is sent each time. It has no system role: for
    a stored assistant the system's text leads the first user message (folding.py), for a
    temporary one it follows the instructions. A job's output spec is asked for natively.
    `max_tokens`, `top_p`, penalties, `seed`, `stop`, `n`, `user`, `reasoning_effort`, `metadata` and
    variables are no parameters of this API and are left out, `temperature` and `model` too where the
    assistant is a stored one.
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        *,
        base_url: str,
        api_key: str | None,
        api: Api = "assistant",
        stream: bool = False,
    ) -> None:
        """Use this client for all calls; with `stream` the service is asked to stream its answers."""
        self._client = client
        self._url = f"{base_url.rstrip('/')}/{api}/v1/chat/completions"
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._api = api
        self._stream = stream
        self._api_key = api_key
        self.name = provider_name(base_url)

    async def complete(self, request: ChatRequest, *, on_delta: OnDelta | None = None) -> ChatReply:
        """Ask the assistant; raises a ProviderError."""
        with presentable(self._api_key):
            return await self._complete(request, on_delta)

    async def _complete(self, request: ChatRequest, on_delta: OnDelta | None) -> ChatReply:
        hosted = request.hosted
        if hosted is None:
            raise RequestRefused("Langdock needs an assistant: its id, or a temporary one's instructions")
        if request.tools:
            raise ToolsUnsupported("Langdock runs an assistant's own tools and takes none from its caller")
        if request.response_format is not None or request.response_schema is not None:
            raise StructuredOutputUnsupported("Langdock has no response_format; give the assistant an output spec")
        answer = await post(
            self._client,
            self._url,
            name=self.name,
            headers=self._headers,
            body=_body(request, hosted, api=self._api, stream=self._stream or on_delta is not None),
            request=request,
            on_event=telling(on_delta),
        )
        if answer.stream is None:
            return _reply(answer)
        return _streamed_reply(answer, answer.stream, name=self.name, request=request)


def _body(request: ChatRequest, hosted: HostedCall, *, api: Api, stream: bool) -> dict[str, Any]:
    stored = hosted.assistant is not None
    rest = [message for message in request.messages if message.role != "system"]
    messages = without_system(request.messages) if stored else rest
    return given(
        {
            f"{api}Id": hosted.assistant,
            api: None if stored else _temporary(request, hosted),
            "messages": _ui_messages(messages) if api == "agent" else [_plain(message) for message in messages],
            "stream": stream,
            "output": _output(hosted.output) if hosted.output else None,
            "maxSteps": hosted.max_steps,
        }
    )


def _temporary(request: ChatRequest, hosted: HostedCall) -> dict[str, Any]:
    more = system_text(request.messages)
    return given(
        {
            "name": hosted.name,
            "instructions": "\n\n".join(filter(None, (hosted.instructions, more))),
            "description": hosted.description or None,
            "temperature": request.temperature,
            "model": hosted.model,
        }
    )


def _output(spec: OutputSpec) -> dict[str, Any]:
    return given(
        {"type": spec.type, "schema": spec.json_schema, "enum": list(spec.enum) if spec.enum is not None else None}
    )


def _plain(message: Message) -> dict[str, Any]:
    """Return a message whose content is a string, as the older API wants it; calls are written as its answers do."""
    if not isinstance(message.content, str | None) and any(isinstance(part, ImagePart) for part in message.content):
        raise RequestRefused("Langdock's assistant API takes no images in messages; use its agent API")
    if message.tool_calls and not message.text:
        calls = [
            {"type": "tool-call", "toolCallId": call.id, "toolName": call.name, "args": _arguments(call.arguments)}
            for call in message.tool_calls
        ]
        return {"role": message.role, "content": json.dumps(calls, ensure_ascii=False)}
    return {"role": message.role, "content": message.text}


def _ui_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return UIMessages: a tool's answer is part of the assistant's message that called it."""
    written: list[dict[str, Any]] = []
    calls: dict[str, dict[str, Any]] = {}
    for message in messages:
        if message.role == "tool":
            called = calls.get(message.tool_call_id or "")
            if called is not None:
                called |= {"state": "output-available", "output": message.text}
            continue
        parts = list(_ui_parts(message))
        for call in message.tool_calls:
            part = {
                "type": f"tool-{call.name}",
                "toolCallId": call.id,
                "state": "input-available",
                "input": _arguments(call.arguments),
            }
            calls[call.id] = part
            parts.append(part)
        written.append({"id": f"msg_{len(written) + 1}", "role": message.role, "parts": parts})
    return written


def _ui_parts(message: Message) -> Iterable[dict[str, Any]]:
    content = (TextPart(text=message.content),) if isinstance(message.content, str) else message.content or ()
    for part in content:
        if isinstance(part, ImagePart):
            yield {"type": "file", "mediaType": _media_type(part.image_url.url), "url": part.image_url.url}
        elif part.text:
            yield {"type": "text", "text": part.text}


def _media_type(url: str) -> str:
    if url.startswith("data:"):
        return url.removeprefix("data:").partition(",")[0].partition(";")[0]
    return mimetypes.guess_type(urlsplit(url).path)[0] or "image/*"


def _arguments(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return {"text": text}


def _reply(answer: Answer) -> ChatReply:
    try:
        body = json.loads(answer.content)
    except (ValueError, RecursionError) as exc:
        raise no_completion(answer, "a result") from exc
    items = _items(body)
    if items is None:
        raise no_completion(answer, "a result")
    transcript = Transcript()
    for item in items:
        transcript.item(item)
    return _read(answer, transcript, output=body.get("output"))


def _items(body: Any) -> list[Any] | None:
    """Return the messages of an answer, None if it is none; what the user said before is no part of it."""
    if not isinstance(body, dict):
        return None
    items = body.get("result", body.get("messages", [body] if "parts" in body else None))
    if not isinstance(items, list):
        return None
    users = [at for at, item in enumerate(items) if isinstance(item, dict) and item.get("role") == "user"]
    return items[users[-1] + 1 :] if users else items


def _streamed_reply(answer: Answer, stream: Stream, *, name: str, request: ChatRequest) -> ChatReply:
    transcript = Transcript()
    output: Any = None
    finish_reason: str | None = None
    finished = stream.cut is None
    for event in stream.events:
        kind = event.get("type") if isinstance(event, dict) else None
        if kind == "error" or (kind is None and isinstance(event, dict) and event.get("error")):
            raise error_in_stream(event, request=request)
        if kind == "abort":
            raise lost("the service broke off", name=name)
        if kind in ("finish", "finish-step"):
            output = event.get("output", output)
            finish_reason = event.get("finishReason") or finish_reason
            finished = finished or kind == "finish"
        if kind is not None:
            transcript.event(event)
    if not finished:
        raise lost(stream.cut, name=name)
    return _read(answer, transcript, output=output, finish_reason=finish_reason)


def _read(answer: Answer, transcript: Transcript, *, output: Any, finish_reason: str | None = None) -> ChatReply:
    said, output = transcript.said(), mended(output)
    if said.answer is None and output is None and not said.exchanged:
        raise no_completion(answer, "an assistant's message")
    # The service stopped at maxSteps, or on a call that it did not run.
    reason = "tool_calls" if said.answer is None and output is None else None
    return ChatReply(
        content=said.answer or _as_text(output),
        # The AI SDK writes OpenAI's reasons with a hyphen.
        finish_reason=reason or (finish_reason.replace("-", "_") if finish_reason else None),
        model="",
        # This API counts no tokens.
        usage=None,
        exchanged=said.exchanged,
        output=output,
        told=answer.told,
        sent_after_s=answer.sent_after_s,
    )


def _as_text(output: Any) -> str:
    """Return a structured output as the answer that stands in the thread."""
    if output is None:
        return ""
    return output if isinstance(output, str) else json.dumps(output, ensure_ascii=False)
