"""A job's result as OpenAI's `chat.completion`, and its parts as `chat.completion.chunk`s: three dialects answer so."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import aclosing
from typing import Any, Literal, cast

from pydantic import BaseModel

from producer.gateway.bodies import Dialect, error_body
from producer.gateway.failures import told_of
from producer.gateway.http import sse
from schemas.chat import ToolCall
from schemas.result import JobResult
from schemas.stream import StreamPart, TextPart, ToolCallPart, ToolResultPart

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]
# What stands beside OpenAI's fields in a completion, and in each chunk: then of None as long as there is no result.
Extra = Callable[[JobResult | None], Mapping[str, Any]]


class CalledFunction(BaseModel):
    """The function of a tool call; `arguments` is the model's JSON text."""

    name: str
    arguments: str


class CompletionToolCall(BaseModel):
    """A tool call that the caller has to answer."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class CompletionMessage(BaseModel):
    """What the model said."""

    role: Literal["assistant"]
    content: str | None
    refusal: str | None
    tool_calls: list[CompletionToolCall] | None = None


class CompletionChoice(BaseModel):
    """One of the answers."""

    index: int
    message: CompletionMessage
    logprobs: None
    finish_reason: FinishReason


class CompletionUsage(BaseModel):
    """The provider's count of tokens, over all requests that the job made."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatCompletion(BaseModel):
    """OpenAI's `chat.completion`; these classes are for the OpenAPI document."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: CompletionUsage


def completion_id_of(job_id: str) -> str:
    """Return the id of the completion that a job is."""
    return f"chatcmpl-{job_id}"


def chat_completion(result: JobResult, *, completion_id: str, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the result as a `chat.completion`, with `extra` beside OpenAI's fields.

    An output that is not text is told as JSON. Of more than one choice only the first one's tool calls are known.
    """
    choices = []
    for index, text in enumerate(_texts(result)):
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        calls = result.tool_calls if index == 0 else ()
        if calls:
            message["tool_calls"] = [call.to_openai() for call in calls]
        reason = _finish_reason(result, calls=bool(calls))
        choices.append({"index": index, "message": message, "logprobs": None, "finish_reason": reason})
    return {
        "id": completion_id,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": result.model or "",
        "choices": choices,
        "usage": _usage(result),
        **(extra or {}),
    }


async def chat_chunks(
    stream: AsyncGenerator[StreamPart | JobResult],
    *,
    completion_id: str,
    model: str,
    dialect: Dialect = Dialect.OPENAI,
    include_usage: bool = False,
    whole: bool = False,
    callers_tools: Collection[str] = (),
    extra: Extra = lambda _: {},
) -> AsyncIterator[str]:
    """Yield the parts of a job as server-sent `chat.completion.chunk`s, and `[DONE]`.

    Calls of `callers_tools` are told as they come; what else waits for the caller's answer is told with the
    result, and rounds of tools that ran here are not told at all. With `whole` nothing is sent before the
    result: an output that may yet be repaired. A Problem before the first chunk is raised, a later one is told in
    the dialect's form and ends the stream without `[DONE]`.
    """
    chunks = _Chunks(completion_id, model, include_usage=include_usage, callers_tools=callers_tools, extra=extra)
    begun = False
    try:
        async with aclosing(stream):
            async for part in stream:
                if whole and not isinstance(part, JobResult):
                    continue
                for chunk in chunks.of(part):
                    begun = True
                    yield sse.event(chunk)
    except Exception as exc:
        if not begun:
            raise
        yield sse.event(error_body(dialect, told_of(exc, completion_id=completion_id)))
        return
    yield sse.DONE


class _Chunks:
    """What was told of one completion, and what is to be told next."""

    def __init__(
        self, completion_id: str, model: str, *, include_usage: bool, callers_tools: Collection[str], extra: Extra
    ) -> None:
        self._head = {
            "id": completion_id,
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": model,
        }
        self._include_usage = include_usage
        self._callers_tools = callers_tools
        self._extra = extra
        self._result: JobResult | None = None
        self._begun: set[int] = set()
        # The text of each choice in the reply that is being told, and whether tools that ran here have answered it.
        self._step = -1
        self._told: dict[int, str] = {}
        self._answered = False
        # Where each call that is told stands among those of its choice: (step, choice, position) -> index.
        self._calls: dict[tuple[int, int, int], int] = {}
        self._call_ids: set[str] = set()

    def of(self, part: StreamPart | JobResult) -> Iterator[dict[str, Any]]:
        """Yield the chunks that tell the part."""
        match part:
            case JobResult():
                self._result = part
                yield from self._rest(part)
            case TextPart() if part.text:
                if part.step != self._step or self._answered:
                    self._step, self._told, self._answered = part.step, {}, False
                self._told[part.index] = self._told.get(part.index, "") + part.text
                yield from self._delta(part.index, {"content": part.text})
            case ToolCallPart():
                yield from self._call(part)
            case ToolResultPart():
                self._answered = True
            case _:
                return

    def _call(self, part: ToolCallPart) -> Iterator[dict[str, Any]]:
        place = (part.step, part.index, part.position)
        if place in self._calls:
            if part.arguments:
                call = {"index": self._calls[place], "function": {"arguments": part.arguments}}
                yield from self._delta(part.index, {"tool_calls": [call]})
        elif part.id is not None and part.name in self._callers_tools:
            self._calls[place] = self._calls_told(part.index)
            self._call_ids.add(part.id)
            told = ToolCall(id=part.id, name=cast("str", part.name), arguments=part.arguments)
            yield from self._delta(part.index, {"tool_calls": [{"index": self._calls[place], **told.to_openai()}]})

    def _calls_told(self, choice: int) -> int:
        return sum(place[1] == choice for place in self._calls)

    def _rest(self, result: JobResult) -> Iterator[dict[str, Any]]:
        """Yield what was not told in parts, and the end."""
        texts = _texts(result)
        # Another reply follows one that tools have answered, unless its caller has to answer some calls too.
        told = {} if self._answered and not result.tool_calls else self._told
        for index, text in enumerate(texts):
            said = told.get(index, "")
            # What does not go on as it was told cannot be told any more.
            left = text[len(said) :] if text is not None and text.startswith(said) else ""
            if left or index not in self._begun:
                yield from self._delta(index, {"content": left} if left else {})
        untold = [call for call in result.tool_calls if call.id not in self._call_ids]
        for index, call in enumerate(untold, self._calls_told(0)):
            yield from self._delta(0, {"tool_calls": [{"index": index, **call.to_openai()}]})
        for index in range(len(texts)):
            called = self._calls_told(index) > 0 or (index == 0 and bool(untold))
            reason = _finish_reason(result, calls=called)
            yield self._chunk([{"index": index, "delta": {}, "logprobs": None, "finish_reason": reason}])
        if self._include_usage:
            yield self._chunk([], usage=_usage(result))

    def _delta(self, index: int, delta: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if index not in self._begun:
            self._begun.add(index)
            yield self._chunk([_choice(index, {"role": "assistant", "content": "", "refusal": None})])
        if delta:
            yield self._chunk([_choice(index, delta)])

    def _chunk(self, choices: list[dict[str, Any]], *, usage: dict[str, int] | None = None) -> dict[str, Any]:
        counted = {"usage": usage} if self._include_usage else {}
        return {**self._head, "choices": choices, **counted, **self._extra(self._result)}


def _choice(index: int, delta: dict[str, Any]) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


def _texts(result: JobResult) -> tuple[str | None, ...]:
    output = result.output
    text = output if output is None or isinstance(output, str) else json.dumps(output, ensure_ascii=False)
    return (text, *result.choices[1:])


def _usage(result: JobResult) -> dict[str, int]:
    return {
        "prompt_tokens": result.prompt_tokens,
        "completion_tokens": result.completion_tokens,
        "total_tokens": result.prompt_tokens + result.completion_tokens,
    }


def _finish_reason(result: JobResult, *, calls: bool) -> FinishReason:
    """Return one of OpenAI's reasons: a provider may have others, or none, and the first choice's stands for all."""
    if calls:
        return "tool_calls"
    match result.finish_reason:
        case "length" | "content_filter":
            return cast("FinishReason", result.finish_reason)
        case _:
            return "stop"
