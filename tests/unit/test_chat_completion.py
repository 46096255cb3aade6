"""A job's parts as chunks of a chat completion."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from typing import Any

import pytest

from producer.gateway.bodies import Dialect
from producer.gateway.chat.completion import chat_chunks, chat_completion
from producer.gateway.problem import Kind, Problem
from schemas.chat import ToolCall, Usage
from schemas.outcome import Status
from schemas.result import JobResult
from schemas.stream import StepEnded, StreamPart, TextPart, ToolCallPart, ToolResultPart

LOST = Problem(Kind.PROVIDER_FAILED, "the answer broke off", code="reply_lost")


def result(output: Any = None, **fields: Any) -> JobResult:
    return JobResult(
        job_id="j",
        status=Status.SUCCEEDED,
        assistant="w/p/a",
        model="m",
        output=output,
        prompt_tokens=3,
        completion_tokens=2,
        finished_at=datetime.now(UTC),
        **fields,
    )


def told(*parts: StreamPart | JobResult | Exception, **options: Any) -> list[Any]:
    """Return what is told of these parts: each event's JSON, and `[DONE]` as its text."""

    async def stream() -> AsyncGenerator[StreamPart | JobResult]:
        for part in parts:
            if isinstance(part, Exception):
                raise part
            yield part

    async def run() -> list[str]:
        return [text async for text in chat_chunks(stream(), completion_id="c", model="m", **options)]

    data = [text.removeprefix("data: ").strip() for text in asyncio.run(run())]
    return [each if each == "[DONE]" else json.loads(each) for each in data]


def said(chunks: list[Any], index: int = 0) -> tuple[str, list[Any], str | None]:
    """Put the chunks of a choice together as a client does: text, tool calls, finish reason."""
    text, reason = "", None
    calls: dict[int, Any] = {}
    for chunk in chunks:
        for choice in (each for each in chunk["choices"] if each["index"] == index):
            delta = choice["delta"]
            text += delta.get("content") or ""
            for call in delta.get("tool_calls", ()):
                known = calls.setdefault(call["index"], {"id": call.get("id"), "name": None, "arguments": ""})
                known["name"] = call["function"].get("name", known["name"])
                known["arguments"] += call["function"]["arguments"]
            reason = choice["finish_reason"] or reason
    return text, list(calls.values()), reason


def test_text_is_told_as_it_comes_after_the_role_and_ends_with_reason_usage_and_done() -> None:
    parts = (
        TextPart(step=0, text="Hel"),
        TextPart(step=0, text="lo"),
        StepEnded(step=0, finish_reason="stop", usage=Usage()),
    )
    *chunks, done = told(*parts, result("Hello", finish_reason="length"), include_usage=True)
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    assert deltas == [{"role": "assistant", "content": "", "refusal": None}, {"content": "Hel"}, {"content": "lo"}, {}]
    assert said(chunks) == ("Hello", [], "length")
    assert chunks[-1]["choices"] == []
    assert [chunk["usage"] for chunk in chunks[-2:]] == [
        None,
        {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    ]
    assert done == "[DONE]"


def test_what_was_not_told_in_parts_is_told_at_the_end() -> None:
    *whole, _ = told(result({"a": 1}))
    assert said(whole) == ('{"a": 1}', [], "stop")
    *rest, _ = told(TextPart(step=0, text="Hel"), result("Hello"))
    assert said(rest)[0] == "Hello"
    call = ToolCall(id="c1", name="f", arguments="{}")
    *calls, _ = told(result(tool_calls=(call,)))
    assert said(calls) == ("", [{"id": "c1", "name": "f", "arguments": "{}"}], "tool_calls")


def test_rounds_of_tools_that_ran_here_are_not_told_but_the_text_of_each_reply_is() -> None:
    *chunks, _ = told(
        TextPart(step=0, text="Look: "),
        ToolCallPart(step=0, position=0, id="c1", name="ours", arguments="{}"),
        ToolResultPart(step=1, call_id="c1", name="ours", content="Look: 42"),
        result("Look: 42"),
        callers_tools={"theirs"},
    )
    # The second reply was not told in parts, and begins as the first did.
    assert said(chunks) == ("Look: Look: 42", [], "stop")


def test_a_service_that_runs_its_own_tools_within_one_step_is_told_once() -> None:
    *chunks, _ = told(
        TextPart(step=0, text="Look: "),
        ToolResultPart(step=0, call_id="c1", name="search", content="42"),
        TextPart(step=0, text="It is "),
        result("It is 42."),
    )
    assert said(chunks)[0] == "Look: It is 42."


def test_the_callers_calls_are_told_in_pieces_beside_ours_and_the_text_once() -> None:
    theirs = ToolCall(id="c2", name="theirs", arguments='{"x":1}')
    *chunks, _ = told(
        TextPart(step=0, text="Both."),
        ToolCallPart(step=0, position=0, id="c1", name="ours"),
        ToolCallPart(step=0, position=1, id="c2", name="theirs"),
        ToolCallPart(step=0, position=1, arguments='{"x"'),
        ToolCallPart(step=0, position=0, arguments="{}"),
        ToolCallPart(step=0, position=1, arguments=":1}"),
        ToolResultPart(step=1, call_id="c1", name="ours", content="42"),
        result("Both.", tool_calls=(theirs,)),
        callers_tools={"theirs"},
    )
    assert said(chunks) == ("Both.", [{"id": "c2", "name": "theirs", "arguments": '{"x":1}'}], "tool_calls")


def test_each_choice_has_its_role_text_and_end() -> None:
    parts = [TextPart(step=0, text=text, index=index) for index, text in ((0, "a"), (1, "b"), (0, "A"))]
    *chunks, _ = told(*parts, result("aA", choices=("aA", "bB"), finish_reason="stop"))
    assert [said(chunks, index) for index in (0, 1)] == [("aA", [], "stop"), ("bB", [], "stop")]
    roles = [choice["index"] for chunk in chunks for choice in chunk["choices"] if "role" in choice["delta"]]
    assert roles == [0, 1]


def test_nothing_of_an_output_that_may_be_mended_is_told_before_it_is_valid() -> None:
    *chunks, _ = told(TextPart(step=0, text="no JSON"), TextPart(step=1, text='{"a":1}'), result({"a": 1}), whole=True)
    assert said(chunks)[0] == '{"a": 1}'
    with pytest.raises(Problem):
        told(TextPart(step=0, text="no JSON"), LOST, whole=True)


@pytest.mark.parametrize("dialect", [Dialect.OPENAI, Dialect.AGENT])
def test_a_problem_in_the_middle_is_told_and_ends_the_stream_without_done(dialect: Dialect) -> None:
    *_, last = told(TextPart(step=0, text="Hel"), LOST, dialect=dialect)
    assert last["error"]["code"] == "reply_lost"
    with pytest.raises(Problem):
        told(LOST, dialect=dialect)


def test_a_fault_of_ours_in_the_middle_is_told_without_its_words() -> None:
    *_, last = told(TextPart(step=0, text="Hel"), RuntimeError("secret"))
    assert last["error"]["type"] == "server_error"
    assert "secret" not in json.dumps(last)


def test_what_stands_beside_is_in_each_chunk_and_knows_the_result_once_it_is_there() -> None:
    *chunks, _ = told(
        TextPart(step=0, text="a"), result("a"), extra=lambda known: {"session_id": "s", "known": known is not None}
    )
    assert [(chunk["session_id"], chunk["known"]) for chunk in chunks] == [("s", False), ("s", False), ("s", True)]


@pytest.mark.parametrize(
    ("reason", "told_as"), [(None, "stop"), ("eos", "stop"), ("length", "length"), ("tool_calls", "stop")]
)
def test_a_finish_reason_is_one_of_openais(reason: str | None, told_as: str) -> None:
    body = chat_completion(result("a", finish_reason=reason), completion_id="c")
    assert body["choices"][0]["finish_reason"] == told_as
