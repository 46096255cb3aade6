"""A job's end in Langdock's form: the `result` array, or the events of a stream (CONTRACT.md 3.4, decision 72).

A part of a `tool-call` has `args`, of a `tool-result` has `result`; both are JSON objects, so another value that a
tool answered stands in one, under `value`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator
from contextlib import aclosing
from typing import Any, Literal

from pydantic import BaseModel

from producer.gateway.failures import told_of
from producer.gateway.http import sse
from producer.gateway.problem import Problem
from schemas.chat import Message, ToolCall
from schemas.job import InvokeJob
from schemas.result import JobResult
from schemas.stream import StepEnded, StreamPart, TextPart, ToolCallPart, ToolResultPart


class ResultPart(BaseModel):
    """One part of an item."""

    type: Literal["text", "tool-call", "tool-result"]
    text: str | None = None
    toolCallId: str | None = None  # noqa: N815 - Langdock's names
    toolName: str | None = None  # noqa: N815
    args: dict[str, Any] | None = None
    result: dict[str, Any] | None = None


class ResultItem(BaseModel):
    """One message that was said to answer the request's."""

    id: str
    role: Literal["assistant", "tool"]
    content: list[ResultPart]


class CompletionAnswer(BaseModel):
    """All that was said, and the output where one was asked for."""

    result: list[ResultItem]
    output: Any = None


def answer_of(job: InvokeJob, result: JobResult) -> dict[str, Any]:
    """Return the body of a CompletionAnswer, without the keys that are not there."""
    items = [
        {"id": f"msg_{result.job_id.removeprefix('job_')}_{number}", "role": role, "content": content}
        for number, (role, content) in enumerate(_items(said_of(job, result)))
    ]
    return {"result": items} | ({"output": result.output} if _has_output(job, result) else {})


def said_of(job: InvokeJob, result: JobResult) -> tuple[Message, ...]:
    """Return what was said after the job's own messages."""
    said = result.turn[len(job.messages) :]
    # What is not recorded is told of no turn.
    return said or (Message(role="assistant", content=_text_of(result), tool_calls=result.tool_calls),)


async def events_of(job: InvokeJob, parts: AsyncGenerator[StreamPart | JobResult]) -> AsyncIterator[str]:
    """Yield the events of a stream; an error before the first of them is raised, a later one is an event itself."""
    told = _Told()
    began = False
    try:
        async with aclosing(parts):
            async for part in parts:
                last = _last_events(job, part, told) if isinstance(part, JobResult) else told.events(part)
                for event in last:
                    began = True
                    yield sse.event(event)
    except Exception as exc:
        if not began:
            raise
        yield sse.event(_error(told_of(exc)))
    yield sse.DONE


class _Told:
    """What the client was told so far."""

    def __init__(self) -> None:
        self.text: dict[int, str] = {}
        self.calls: set[str] = set()
        self.results: set[str] = set()
        self._coming: dict[tuple[int, int], ToolCall] = {}

    def events(self, part: StreamPart) -> Iterator[dict[str, Any]]:
        match part:
            case TextPart(index=0) if part.text:
                self.text[part.step] = self.text.get(part.step, "") + part.text
                yield {"type": "text-delta", "id": str(part.step), "delta": part.text}
            case ToolCallPart(index=0):
                known = self._coming.get((part.step, part.position)) or ToolCall(id="", name="", arguments="")
                self._coming[part.step, part.position] = ToolCall(
                    id=part.id or known.id, name=part.name or known.name, arguments=known.arguments + part.arguments
                )
            case ToolResultPart():
                yield from self.whole_calls()
                self.results.add(part.call_id)
                yield _tool_result(part.call_id, part.name, part.content)
            case StepEnded():
                yield from self.whole_calls()
                yield {
                    "type": "finish-step",
                    "finishReason": _finish_reason(part.finish_reason),
                    "usage": _usage(part.usage.prompt_tokens, part.usage.completion_tokens),
                }
            case _:
                return

    def whole_calls(self) -> Iterator[dict[str, Any]]:
        """Give the calls whose pieces have come, once what follows them comes."""
        for call in self._coming.values():
            self.calls.add(call.id)
            yield _tool_call(call)
        self._coming.clear()


def _last_events(job: InvokeJob, result: JobResult, told: _Told) -> Iterator[dict[str, Any]]:
    """Give what the parts did not tell, such as of a provider that does not stream, and the end."""
    yield from told.whole_calls()
    said = said_of(job, result)
    nothing_was = not told.text
    last_text = told.text[max(told.text)] if told.text else ""
    for message in said:
        if message.role == "tool":
            if message.tool_call_id not in told.results:
                yield _tool_result(message.tool_call_id or "", message.name, message.text)
            continue
        text = message.text if nothing_was else ""
        if message is said[-1]:
            text = message.text.removeprefix(last_text)
        if text:
            yield {"type": "text-delta", "id": "0", "delta": text}
        yield from (_tool_call(call) for call in message.tool_calls if call.id not in told.calls)
    yield {
        "type": "finish",
        "finishReason": _finish_reason(result.finish_reason),
        "usage": _usage(result.prompt_tokens, result.completion_tokens),
        **({"output": result.output} if _has_output(job, result) else {}),
    }


def _items(said: Iterable[Message]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Give role and parts of each item; the answers to one message's calls are one item."""
    answers: list[dict[str, Any]] = []
    for message in said:
        if message.role == "tool":
            answers.append(_tool_result(message.tool_call_id or "", message.name, message.text))
            continue
        if answers:
            yield "tool", answers
            answers = []
        if message.role == "assistant":
            text = [{"type": "text", "text": message.text}] if message.text or not message.tool_calls else []
            yield "assistant", [*text, *map(_tool_call, message.tool_calls)]
    if answers:
        yield "tool", answers


def _tool_call(call: ToolCall) -> dict[str, Any]:
    return {"type": "tool-call", "toolCallId": call.id, "toolName": call.name, "args": _object(call.arguments)}


def _tool_result(call_id: str, name: str | None, content: str) -> dict[str, Any]:
    named = {"toolName": name} if name else {}
    return {"type": "tool-result", "toolCallId": call_id, **named, "result": _object(content)}


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = text
    return value if isinstance(value, dict) else {"value": value}


def _has_output(job: InvokeJob, result: JobResult) -> bool:
    return job.output is not None and not result.tool_calls


def _text_of(result: JobResult) -> str:
    output = result.output
    return output if isinstance(output, str) else "" if output is None else json.dumps(output, ensure_ascii=False)


def _finish_reason(reason: str | None) -> str:
    # As the AI SDK writes OpenAI's.
    return (reason or "stop").replace("_", "-")


def _usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    total = prompt_tokens + completion_tokens
    return {"promptTokens": prompt_tokens, "completionTokens": completion_tokens, "totalTokens": total}


def _error(problem: Problem) -> dict[str, Any]:
    return {"type": "error", "errorText": problem.message, "code": problem.code, "status": problem.status}
