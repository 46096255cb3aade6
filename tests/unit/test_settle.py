"""What a job leaves behind: its result, and its turn of the thread."""

from __future__ import annotations

from typing import Any

import pytest

from schemas import JobRecord, Message, Status, Usage
from schemas.outcome import Cancelled, Code, Expired, Failed, Final, InvalidOutput, OverBudget, Succeeded
from tests.given import NOW, a_config, a_job, user
from worker.flow.prepare import Prepared, prepare
from worker.flow.settle import result_of, settlement_of
from worker.queue.queue import Claimed
from worker.queue.steps import ReplyStep
from worker.store.base import JobContext, StoredAssistant


def prepared() -> Prepared:
    context = JobContext(settled=None, assistant=StoredAssistant(config=a_config(), version=3))
    ready = prepare(JobRecord(id="j", job=a_job("j")), context, default_model=None)
    assert isinstance(ready, Prepared)
    return ready


PREPARED = prepared()


def claimed(*, attempts: int = 0, **job: Any) -> Claimed:
    record = JobRecord(id="j", job=a_job("j", **job), batch_id="b", row=4)
    return Claimed(record=record, epoch=5, attempts=attempts, enqueued_ms=1000, claimed_ms=2000, journal=())


def reply(content: str = "fine", *, model: str = "m1-0613") -> ReplyStep:
    usage = Usage(prompt_tokens=10, completion_tokens=2)
    return ReplyStep(content=content, finish_reason="stop", model=model, usage=usage)


FINALS: list[tuple[Final, Status]] = [
    (Succeeded("fine"), Status.SUCCEEDED),
    (InvalidOutput(Code.OUTPUT_NOT_JSON, "no", "raw"), Status.INVALID_OUTPUT),
    (Failed(Code.REQUEST_REFUSED, "no"), Status.FAILED),
    (Cancelled(), Status.CANCELLED),
    (Expired(), Status.EXPIRED),
    (OverBudget(Code.BATCH_BUDGET, "spent"), Status.OVER_BUDGET),
]


@pytest.mark.parametrize(("outcome", "status"), FINALS, ids=[status for _, status in FINALS])
def test_each_outcome_has_its_status_and_only_success_an_output(outcome: Final, status: Status) -> None:
    result = result_of(claimed(), outcome, prepared=PREPARED, steps=(reply(),), now=NOW)
    assert result.status is status
    assert result.output == ("fine" if status is Status.SUCCEEDED else None)
    assert (result.batch_id, result.row, result.version, result.finished_at) == ("b", 4, 3, NOW)


def test_an_invalid_output_keeps_the_raw_reply_and_the_reason() -> None:
    outcome = InvalidOutput(Code.OUTPUT_NOT_JSON, "it is not JSON", "I think so")
    result = result_of(claimed(), outcome, prepared=PREPARED, steps=(reply(),), now=NOW)
    assert (result.raw_reply, result.error_code, result.error) == ("I think so", "output_not_json", "it is not JSON")


def test_requests_and_tokens_are_summed_over_all_replies_and_the_model_is_the_last_ones() -> None:
    steps = (reply(), reply(model="m1-fallback"))
    result = result_of(claimed(), Succeeded("fine"), prepared=PREPARED, steps=steps, now=NOW)
    assert (result.requests, result.prompt_tokens, result.completion_tokens) == (2, 20, 4)
    assert result.model == "m1-fallback"


@pytest.mark.parametrize(("tried", "attempts"), [(True, 3), (False, 2)])
def test_this_run_counts_as_an_attempt_only_if_it_was_one(tried: bool, attempts: int) -> None:
    held = claimed(attempts=2)
    result = result_of(held, Failed(Code.MISSING_VARIABLE, "no"), prepared=None, steps=(), now=NOW, tried=tried)
    assert (result.attempts, result.requests, result.model) == (attempts, 0, None)


def test_a_success_without_a_thread_begins_one_and_a_failure_does_not() -> None:
    good = result_of(claimed(), Succeeded("fine"), prepared=PREPARED, steps=(reply(),), now=NOW)
    bad = result_of(claimed(), Failed(Code.REQUEST_REFUSED, "no"), prepared=PREPARED, steps=(), now=NOW)
    assert (good.thread_id, bad.thread_id) == ("thread_j", None)


def test_a_thread_that_was_named_stays_named_whatever_happens() -> None:
    for outcome, _ in FINALS:
        result = result_of(claimed(thread_id="t"), outcome, prepared=PREPARED, steps=(reply(),), now=NOW)
        assert result.thread_id == "t"


def test_a_turn_is_what_was_asked_and_what_was_answered() -> None:
    held = claimed(messages=(user("one"), user("two")))
    steps = (reply("first try"), reply("fine"))
    result = result_of(held, Succeeded("fine"), prepared=PREPARED, steps=steps, now=NOW)
    settlement = settlement_of(held, result, steps=steps)
    assert settlement.new_messages == (user("one"), user("two"), Message(role="assistant", content="fine"))
    assert (settlement.epoch, settlement.enqueued_ms) == (5, 1000)


@pytest.mark.parametrize(("outcome", "status"), FINALS[1:], ids=[status for _, status in FINALS[1:]])
def test_without_success_there_is_no_turn(outcome: Final, status: Status) -> None:
    held = claimed(messages=(user("one"),))
    result = result_of(held, outcome, prepared=PREPARED, steps=(reply(),), now=NOW)
    assert settlement_of(held, result, steps=(reply(),)).new_messages == ()
