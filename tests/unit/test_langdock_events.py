"""The parts of a reply as Langdock's events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from typing import Any

import pytest

from producer.gateway.dialects.langdock.answer import events_of
from producer.gateway.problem import Kind, Problem
from schemas import InvokeJob, JobResult, Message
from schemas.chat import ToolCall, Usage
from schemas.outcome import Status
from schemas.stream import StepEnded, StreamPart, TextPart, ToolCallPart, ToolResultPart

HELLO = Message(role="user", content="Hello")
JOB = InvokeJob(assistant="a/b/c", messages=(HELLO,), tell="stream")
CALL = ToolCall(id="c1", name="look", arguments='{"id": 7}')
TURN = (
    HELLO,
    Message(role="assistant", content="I look.", tool_calls=(CALL,)),
    Message(role="tool", content="seven", tool_call_id="c1", name="look"),
    Message(role="assistant", content="It is 7."),
)
RESULT = JobResult(
    job_id="job_1",
    status=Status.SUCCEEDED,
    output="It is 7.",
    assistant="a/b/c",
    finish_reason="stop",
    turn=TURN,
    prompt_tokens=9,
    completion_tokens=4,
    finished_at=datetime.now(UTC),
)


def events(*parts: StreamPart | JobResult | Exception) -> list[Any]:
    async def stream() -> AsyncGenerator[StreamPart | JobResult]:
        for part in parts:
            if isinstance(part, Exception):
                raise part
            yield part

    async def collect() -> list[str]:
        return [event async for event in events_of(JOB, stream())]

    told = [event.removeprefix("data: ").strip() for event in asyncio.run(collect())]
    assert told.pop() == "[DONE]"
    return [json.loads(event) for event in told]


def brief(told: list[Any]) -> list[Any]:
    return [(event["type"], event.get("delta") or event.get("toolCallId") or "") for event in told]


def test_each_part_is_told_as_it_comes_and_a_call_once_it_is_whole() -> None:
    told = events(
        TextPart(step=0, text="I "),
        TextPart(step=0, text="look."),
        ToolCallPart(step=0, position=0, id="c1", name="look"),
        ToolCallPart(step=0, position=0, arguments='{"id"'),
        ToolCallPart(step=0, position=0, arguments=": 7}"),
        StepEnded(step=0, finish_reason="tool_calls", usage=Usage(prompt_tokens=5, completion_tokens=2)),
        ToolResultPart(step=1, call_id="c1", name="look", content="seven"),
        TextPart(step=2, text="It is 7."),
        # Other choices have no place here.
        TextPart(step=2, text="Or 8.", index=1),
        StepEnded(step=2, finish_reason="stop", usage=Usage()),
        RESULT,
    )
    assert brief(told) == [
        ("text-delta", "I "),
        ("text-delta", "look."),
        ("tool-call", "c1"),
        ("finish-step", ""),
        ("tool-result", "c1"),
        ("text-delta", "It is 7."),
        ("finish-step", ""),
        ("finish", ""),
    ]
    assert (told[2]["args"], told[3]["finishReason"], told[4]["result"]) == (
        {"id": 7},
        "tool-calls",
        {"value": "seven"},
    )
    assert told[-1]["usage"] == {"promptTokens": 9, "completionTokens": 4, "totalTokens": 13}


@pytest.mark.parametrize("before", [(), (TextPart(step=0, text="I look."),), (TextPart(step=2, text="It is"),)])
def test_what_was_not_told_in_parts_is_told_at_the_end(before: tuple[StreamPart, ...]) -> None:
    told = events(*before, RESULT)
    assert {event["type"] for event in told} == {"text-delta", "tool-call", "tool-result", "finish"}
    text = "".join(event["delta"] for event in told if event["type"] == "text-delta")
    assert text in ("I look.It is 7.", "It is 7.")


def test_an_error_after_the_first_event_is_an_event_and_before_it_an_error() -> None:
    lost = Problem(Kind.PROVIDER_FAILED, "the answer broke off", code="reply_lost")
    error = {"type": "error", "errorText": "the answer broke off", "code": "reply_lost", "status": 502}
    assert events(TextPart(step=0, text="I"), lost)[-1] == error
    with pytest.raises(Problem, match="broke off"):
        events(lost)
    assert "hush" not in json.dumps(events(TextPart(step=0, text="I"), ValueError("hush")))
