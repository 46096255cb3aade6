"""OpenAI's chat completion, whole or in chunks: how requests say tools, and what answers say."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from schemas.chat import ToolCall, Usage
from worker.providers.base import ChatReply, ChatRequest
from worker.providers.errors import ProviderError, ReplyLost, ReplyMalformed
from worker.providers.exchange import Answer
from worker.providers.http_errors import error_in_stream, words_of
from worker.providers.sse import Stream
from worker.providers.texts import mended

# What a database column holds.
_TOKENS_MAX = 2**31 - 1


class _Lenient(BaseModel):
    model_config = ConfigDict(extra="ignore")


class _Function(_Lenient):
    name: str | None = None
    arguments: str | None = None

    @field_validator("arguments", mode="before")
    @classmethod
    def _objects_are_text(cls, arguments: Any) -> Any:
        """Some servers give the object instead of its JSON text."""
        return json.dumps(arguments, ensure_ascii=False) if isinstance(arguments, dict | list) else arguments


class _Call(_Lenient):
    index: int | None = None
    id: str | None = None
    function: _Function = Field(default_factory=_Function)


class _Message(_Lenient):
    """A message, or the delta of one."""

    content: str | None = None
    refusal: str | None = None
    tool_calls: list[_Call] | None = None
    function_call: _Function | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _parts_are_text(cls, content: Any) -> Any:
        """Some servers give parts, of which the text is the answer."""
        if isinstance(content, list):
            return "".join(part.get("text") or "" for part in content if isinstance(part, dict))
        return content


class _Choice(_Lenient):
    index: int | None = None
    message: _Message
    finish_reason: str | None = None


class _ChunkChoice(_Lenient):
    index: int | None = None
    delta: _Message = Field(default_factory=_Message)
    finish_reason: str | None = None


class _Beside(_Lenient):
    """What stands beside the choices of a completion and of its chunks; two of them are the agent endpoint's."""

    # None of these is worth losing a reply over that is paid for: they are read leniently.
    session_id: Any = None
    index_context_info: Any = None
    usage: Any = None


class _Completion(_Beside):
    model: str | None = None
    choices: list[_Choice]


class _Chunk(_Beside):
    model: str | None = None
    choices: list[_ChunkChoice] = Field(default_factory=list)


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
    completion = _parsed(answer) if stream is None else _joined(stream, name=name, request=request)
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


def lost(cut: str | None, *, name: str) -> ReplyLost:
    """Return the error for a stream that ended before its reply did."""
    return ReplyLost(
        f"{name} did not finish its answer: {cut or 'the stream said nothing that ends it'}", http_status=200
    )


def _parsed(answer: Answer) -> _Completion:
    try:
        # Not Pydantic's own reader, which refuses half a character.
        return _Completion.model_validate(json.loads(answer.content))
    except (ValueError, RecursionError) as exc:
        raise no_completion(answer, "a completion") from exc


def _joined(stream: Stream, *, name: str, request: ChatRequest) -> _Completion:
    """Put the chunks of a stream together."""
    choices: dict[int, _ChoiceInParts] = {}
    whole = _Completion(choices=[])
    for event in stream.events:
        error = _error_in(event, request)
        if error is not None:
            raise error
        try:
            chunk = _Chunk.model_validate(event)
        except ValidationError as exc:
            raise ReplyMalformed(f"a chunk that is none: {event}", http_status=200) from exc
        whole.model = chunk.model or whole.model
        whole.usage = chunk.usage or whole.usage
        whole.session_id = chunk.session_id or whole.session_id
        whole.index_context_info = chunk.index_context_info or whole.index_context_info
        for part in chunk.choices:
            choices.setdefault(part.index or 0, _ChoiceInParts()).add(part)
    finished = [choice for choice in choices.values() if choice.finish_reason]
    if stream.cut is not None and len(finished) < max(len(choices), request.n or 1):
        raise lost(stream.cut, name=name)
    whole.choices = [choice.joined(index) for index, choice in choices.items()]
    return whole


def _error_in(event: Any, request: ChatRequest) -> ProviderError | None:
    failed = isinstance(event, dict) and (event.get("error") or event.get("type") == "error")
    return error_in_stream(event, request=request) if failed else None


class _ChoiceInParts:
    """One choice of a stream, as far as it has come."""

    def __init__(self) -> None:
        self.finish_reason: str | None = None
        self._content: list[str] = []
        self._refusal: list[str] = []
        self._calls: dict[int, _CallInParts] = {}
        self._function_call: _CallInParts | None = None

    def add(self, part: _ChunkChoice) -> None:
        self.finish_reason = part.finish_reason or self.finish_reason
        self._content.append(part.delta.content or "")
        self._refusal.append(part.delta.refusal or "")
        for call in part.delta.tool_calls or ():
            self._calls.setdefault(self._place_of(call), _CallInParts()).add(call.id, call.function)
        if part.delta.function_call is not None:
            self._function_call = self._function_call or _CallInParts()
            self._function_call.add(None, part.delta.function_call)

    def _place_of(self, call: _Call) -> int:
        """Some servers leave the index away: a new id is a new call then, and no id belongs to the last one."""
        if call.index is not None:
            return call.index
        last = max(self._calls, default=-1)
        return last + 1 if last < 0 or (call.id and call.id != self._calls[last].id) else last

    def joined(self, index: int) -> _Choice:
        message = _Message(
            content="".join(self._content),
            refusal="".join(self._refusal) or None,
            tool_calls=[self._calls[place].joined() for place in sorted(self._calls)],
            function_call=self._function_call.joined().function if self._function_call else None,
        )
        return _Choice(index=index, message=message, finish_reason=self.finish_reason)


class _CallInParts:
    def __init__(self) -> None:
        self.id: str | None = None
        self._name: str | None = None
        self._arguments: list[str] = []

    def add(self, call_id: str | None, function: _Function) -> None:
        self.id = self.id or call_id
        self._name = self._name or function.name
        self._arguments.append(function.arguments or "")

    def joined(self) -> _Call:
        return _Call(id=self.id, function=_Function(name=self._name, arguments="".join(self._arguments)))


def _tool_calls(message: _Message) -> tuple[ToolCall, ...]:
    calls = list(message.tool_calls or ())
    if not calls and message.function_call is not None:
        calls = [_Call(function=message.function_call)]
    return tuple(_with_own_ids(calls))


def _with_own_ids(calls: Iterable[_Call]) -> Iterable[ToolCall]:
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
