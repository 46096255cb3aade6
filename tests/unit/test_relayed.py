"""What is relayed of a job: each word once, whoever tells it again, and what the parts lack from the result."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from producer.gateway.relayed import Mismatch, Relayed
from schemas.chat import ToolCall, Usage
from schemas.outcome import Status
from schemas.result import JobResult
from schemas.stream import StepEnded, StreamPart, TextPart, ToolCallPart, ToolResultPart

CALL = ToolCall(id="c1", name="look", arguments='{"q": 1}')


def said(text: str, step: int = 0, index: int = 0) -> TextPart:
    return TextPart(step=step, text=text, index=index)


def called(arguments: str, step: int = 0, **first: Any) -> ToolCallPart:
    return ToolCallPart(step=step, position=0, arguments=arguments, **first)


def ended(step: int = 0) -> StepEnded:
    return StepEnded(step=step, finish_reason="stop", usage=Usage())


def answered(step: int = 1) -> ToolResultPart:
    return ToolResultPart(step=step, call_id="c1", name="look", content="2")


def result(output: Any, *, requests: int = 1, **fields: Any) -> JobResult:
    return JobResult(
        job_id="j", status=Status.SUCCEEDED, assistant="w/p/a", output=output, requests=requests,
        finished_at=datetime.now(UTC), **fields,
    )  # fmt: skip


def relayed(*parts: StreamPart) -> Relayed:
    relayed = Relayed()
    for part in parts:
        assert relayed.new_of(part) == [part]
    return relayed


def test_a_journal_that_is_told_again_adds_only_what_is_new() -> None:
    so_far = relayed(said("Hm"), called('{"q"', id="c1", name="look"))
    assert so_far.goes_on_from(2)
    again = (said("Hm."), called(CALL.arguments, id="c1", name="look"), ended(), answered(), said("Two.", step=2))
    assert [each for part in again for each in so_far.new_of(part)] == [
        said("."), called(": 1}"), ended(), answered(), said("Two.", step=2),
    ]  # fmt: skip


def test_what_a_worker_said_of_a_step_that_is_not_in_the_journal_is_void() -> None:
    assert Relayed().goes_on_from(0)
    assert not relayed(said("Hm")).goes_on_from(0)
    assert relayed(said("Hm"), ended()).goes_on_from(1)
    # The journal itself was lost.
    assert not relayed(said("Hm"), ended(), answered()).goes_on_from(1)


@pytest.mark.parametrize(
    ("parts", "end", "rest"),
    [
        ([], result("Hello"), [said("Hello")]),
        ([said("Hel")], result("Hello"), [said("lo")]),
        ([said("Hello"), ended()], result("Hello"), []),
        ([ended()], result({"a": "ä"}), [said('{"a": "ä"}')]),
        ([said("a"), said("b", index=1)], result("aa", choices=("aa", "bb")), [said("a"), said("b", index=1)]),
        ([said("Hm"), ended()], result("Two.", requests=2), [said("Two.", step=1)]),
        ([said("Hm"), ended(), answered()], result("Two.", requests=2), [said("Two.", step=1)]),
        # A service that runs its own tools, all in one reply.
        ([said("Hm"), answered(step=0), said("Tw")], result("Two."), [said("o.")]),
        ([said("Hm")], result("Hm", tool_calls=(CALL,)), [called(CALL.arguments, id="c1", name="look")]),
        ([called('{"q"', id="c1", name="look")], result(None, tool_calls=(CALL,)), [called(": 1}")]),
        # One call was ours and answered, the other waits for the caller.
        ([said("Hm"), called(CALL.arguments, id="c1", name="look"), ended(), answered()],
         result("Hm", tool_calls=(CALL,)), []),
    ],
)  # fmt: skip
def test_what_was_not_told_comes_from_the_result(
    parts: list[StreamPart], end: JobResult, rest: list[StreamPart]
) -> None:
    assert list(relayed(*parts).rest_of(end)) == rest


def test_a_result_that_does_not_follow_on_what_was_relayed_is_no_end() -> None:
    with pytest.raises(Mismatch):
        list(relayed(said("Hel")).rest_of(result("Goodbye")))
