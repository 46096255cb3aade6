"""The auditors of `ops/chaos`: a sound run has no breach, and each planted one is found and named."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest

from ops.faults.audit import (
    AUDITS,
    Audit,
    bought_once,
    counts_exact,
    effects_once,
    history_seen,
    no_crash,
    nothing_left,
    one_event_an_end,
    one_final_state,
    whole_turns,
)
from ops.faults.facts import (
    BatchRow,
    DeliveryRow,
    Exchange,
    Facts,
    Intended,
    IntendedJob,
    JobRow,
    Receipt,
    ThreadLine,
)
from ops.faults.lives import Lives, Span
from ops.faults.plan import KILLS, plan
from ops.faults.script import Kind, Task, digest_of

WORKER, OTHER_WORKER, SERVER = 11, 12, 99
FIRST, SECOND = Task("b.0", Kind.TEXT), Task("b.1", Kind.TOOLS, rounds=1, calls=2)
REFUSED = Task("j", Kind.REFUSED)
SAID_FIRST = (("user", FIRST.text(), (), None), ("assistant", "done: b.0", (), None))
SAID_SECOND = (
    ("user", SECOND.text(), (), None),
    ("assistant", "", ("b.1.0.0", "b.1.0.1"), None),
    ("tool", "ok", (), "b.1.0.0"),
    ("tool", "ok", (), "b.1.0.1"),
    ("assistant", "done: b.1", (), None),
)


def call(key: str, *, at_s: float, pid: int | None = WORKER, **fields: Any) -> Exchange:
    given = {"ended_s": at_s + 1, "fate": "whole", "prompt_tokens": 10, "completion_tokens": 5, **fields}
    return Exchange(key=key, job_id=key.rsplit(".", 1)[0], pid=pid, server_pid=SERVER, arrived_s=at_s, **given)


def row(task: Task, *, status: str = "succeeded", steps: int = 1, **fields: Any) -> JobRow:
    given = {"batch_id": "b", "thread_id": "t", "error_code": None, "output": task.output(), **fields}
    given |= {"requests": steps, "prompt_tokens": 10 * steps, "completion_tokens": 5 * steps}
    return JobRow(id=task.job, workspace="north", status=status, **given)


def sound() -> Facts:
    """A batch of a plain job and one with tools, of one thread; and a single job whose request was refused."""
    lines = [(FIRST, said) for said in SAID_FIRST] + [(SECOND, said) for said in SAID_SECOND]
    return Facts(
        calls=(
            call("b.0.0", at_s=1),
            call("b.1.0", at_s=5, history=digest_of(SAID_FIRST)),
            call("b.1.2", at_s=9, history=digest_of(SAID_FIRST)),
            call("j.0", at_s=9, fate="refused"),
        ),
        effects=(call("b.1.0.0", at_s=7), call("b.1.0.1", at_s=7)),
        intended=(
            Intended(
                id="b",
                is_batch=True,
                workspace="north",
                jobs=(IntendedJob("b.0", "t", FIRST), IntendedJob("b.1", "t", SECOND, webhook=True)),
                webhook=True,
                cancelled=False,
                acknowledged=True,
            ),
            Intended("j", False, "north", (IntendedJob("j", None, REFUSED),), False, False, True),
        ),
        jobs=(
            row(FIRST),
            row(SECOND, steps=2),
            row(REFUSED, status="failed", steps=0, batch_id=None, thread_id=None, error_code="request_refused"),
        ),
        batches=(BatchRow("b", "completed", 2, {"succeeded": 2}, 3, 30, 15, webhook=True),),
        thread_lines=tuple(
            ThreadLine("north", "t", position, task.job, said) for position, (task, said) in enumerate(lines)
        ),
        receipts=(
            Receipt("batch/b", "msg_b", "batch.completed", "{}", verified=True, answered=False),
            Receipt("batch/b", "msg_b", "batch.completed", "{}", verified=True, answered=True),
            Receipt("job/b.1", "msg_b1", "job.succeeded", "{}", verified=True, answered=True),
        ),
        deliveries=(DeliveryRow("msg_b", "batch/b", "delivered"), DeliveryRow("msg_b1", "job/b.1", "delivered")),
        results={"b.0": "succeeded", "b.1": "succeeded", "j": "failed"},
        batch_hashes={
            "b": {
                "total": "2",
                "enqueued": "2",
                "finished": "2",
                "succeeded": "2",
                "requests": "3",
                "prompt_tokens": "30",
                "completion_tokens": "15",
                "state": "completed",
            }
        },
    )


def changed(number: int, name: str, /, **fields: Any) -> Callable[[Facts], Facts]:
    """Return what changes one of the facts of a name."""

    def plant(facts: Facts) -> Facts:
        found = list(getattr(facts, name))
        found[number] = replace(found[number], **fields)
        return with_facts(facts, name, found)

    return plant


def without(number: int, name: str) -> Callable[[Facts], Facts]:
    """Return what takes one of the facts of a name away."""
    return lambda facts: with_facts(facts, name, (each for n, each in enumerate(getattr(facts, name)) if n != number))


def added(name: str, *more: Any) -> Callable[[Facts], Facts]:
    """Return what adds facts of a name."""
    return lambda facts: with_facts(facts, name, (*getattr(facts, name), *more))


def with_facts(facts: Facts, name: str, values: Iterable[Any]) -> Facts:
    replaced: dict[str, Any] = {name: tuple(values)}
    return replace(facts, **replaced)


def in_hash(**fields: str) -> Callable[[Facts], Facts]:
    return lambda facts: replace(facts, batch_hashes={"b": {**facts.batch_hashes["b"], **fields}})


def result(job_id: str, status: str) -> Callable[[Facts], Facts]:
    return lambda facts: replace(facts, results={**facts.results, job_id: status})


@pytest.mark.parametrize("audit", AUDITS, ids=lambda audit: audit.__name__)
def test_a_sound_run_has_no_breach(audit: Audit) -> None:
    verdict = audit(sound(), Lives())
    assert verdict.ok, verdict.breaches
    assert verdict.checked


PLANTED: dict[str, tuple[Audit, Callable[[Facts], Facts], str]] = {
    "an acknowledged job is lost": (one_final_state, without(0, "jobs"), "b.0"),
    "SQL and Redis tell two ends": (one_final_state, result("b.0", "failed"), "b.0"),
    "a job fails against its script": (one_final_state, changed(0, "jobs", status="failed"), "b.0"),
    "a job ends with another one's output": (one_final_state, changed(0, "jobs", output="done: b.1"), "b.0"),
    "a job is cancelled and nobody did": (one_final_state, changed(0, "jobs", status="cancelled"), "b.0"),
    "a job comes from nowhere": (one_final_state, added("jobs", row(Task("x", Kind.TEXT))), "x"),
    "a step is bought again": (bought_once, added("calls", call("b.0.0", at_s=20)), "b.0.0"),
    "it is by another worker": (bought_once, added("calls", call("b.0.0", at_s=20, pid=OTHER_WORKER)), "b.0.0"),
    "a caller hung up": (
        lambda facts, lives: bought_once(changed(0, "calls", fate="gone")(facts), lives),
        added("calls", call("b.0.0", at_s=20)),
        "b.0.0",
    ),
    "a tool is run again": (effects_once, added("effects", call("b.1.0.0", at_s=20)), "b.1.0.0"),
    "a thread has a gap": (whole_turns, changed(6, "thread_lines", position=7), "t"),
    "a turn is half": (whole_turns, without(6, "thread_lines"), "b.1"),
    "a turn is missing": (
        lambda facts, lives: whole_turns(without(0, "thread_lines")(facts), lives),
        without(0, "thread_lines"),
        "b.0",
    ),
    "a turn is doubled": (
        whole_turns,
        added("thread_lines", *(ThreadLine("north", "t", 7 + n, "b.0", said) for n, said in enumerate(SAID_FIRST))),
        "b.0",
    ),
    "turns stand in another order": (
        whole_turns,
        lambda facts: replace(facts, intended=(replace(facts.intended[0], jobs=facts.intended[0].jobs[::-1]),)),
        "t",
    ),
    "a tool answer is not the call's": (
        whole_turns,
        changed(5, "thread_lines", said=("tool", "ok", (), "b.1.0.0")),
        "b.1",
    ),
    "a call saw no history": (history_seen, changed(1, "calls", history=""), "b.1.0"),
    "an end is not told": (one_event_an_end, without(2, "receipts"), "job/b.1"),
    "an end is only told in vain": (one_event_an_end, changed(2, "receipts", answered=False), "job/b.1"),
    "an end is told under two ids": (one_event_an_end, changed(0, "receipts", event_id="msg_other"), "msg_other"),
    "an end is told in two bodies": (one_event_an_end, changed(0, "receipts", body="{1}"), "2 bodies"),
    "an end is told as another": (one_event_an_end, changed(2, "receipts", event_type="job.failed"), "job.failed"),
    "a signature is wrong": (one_event_an_end, changed(2, "receipts", verified=False), "msg_b1"),
    "what did not end is told": (
        one_event_an_end,
        added("receipts", Receipt("job/b.0", "m", "job.succeeded", "{}", verified=True, answered=True)),
        "job/b.0",
    ),
    "an end has two deliveries": (
        one_event_an_end,
        added("deliveries", DeliveryRow("m2", "batch/b", "delivered")),
        "batch/b",
    ),
    "a delivery was given up": (one_event_an_end, changed(0, "deliveries", state="failed"), "msg_b"),
    "a batch counts wrong": (counts_exact, changed(0, "batches", counts={"succeeded": 1}), "b"),
    "a batch's tokens are wrong": (counts_exact, changed(0, "batches", prompt_tokens=31), "31"),
    "a batch has not ended": (counts_exact, without(0, "batches"), "b"),
    "a batch ends as cancelled, undeserved": (counts_exact, changed(0, "batches", state="cancelled"), "cancelled"),
    "Redis counts otherwise": (counts_exact, in_hash(succeeded="3"), "3"),
    "Redis counts what nobody did": (counts_exact, in_hash(finished="3"), "3"),
    "a job's tokens are not its steps'": (counts_exact, changed(1, "calls", prompt_tokens=11), "b.1"),
    "a lease is left": (nothing_left, lambda facts: replace(facts, left_in_redis={"aq:leases": "b.0"}), "aq:leases"),
    "a process is left": (nothing_left, lambda facts: replace(facts, orphans=("process 7",)), "process 7"),
    "a worker trips over a bug": (no_crash, lambda facts: replace(facts, crashes=("job_crashed of b.0",)), "b.0"),
    "a run does not come to its end": (no_crash, lambda facts: replace(facts, unsettled=("1 job",)), "1 job"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_breach_is_found_and_named(name: str) -> None:
    audit, plant, named = PLANTED[name]
    verdict = audit(plant(sound()), Lives())
    assert not verdict.ok
    assert any(named in breach for breach in verdict.breaches), verdict.breaches


def again(audit: Audit, lives: Lives, **fields: Any) -> tuple[str, ...]:
    """Return the breaches of a run in which step b.0.0 was bought, and run, from 1 to 2 s, and again at 20 s."""
    later = call("b.0.0", at_s=20, pid=OTHER_WORKER)
    earlier = replace(call("b.0.0", at_s=1), **fields)
    return audit(replace(sound(), calls=(earlier, later), effects=(earlier, later)), lives).breaches


EXPLAINED: dict[str, tuple[Lives, dict[str, Any]]] = {
    "its worker was killed meanwhile": (Lives(deaths={WORKER: Span(1.5, 1.6)}), {}),
    "its worker was killed right after the reply": (Lives(deaths={WORKER: Span(2.5, 2.6)}), {}),
    "its worker was stopped meanwhile": (Lives(stops={WORKER: [Span(1.5, 9)]}), {}),
    "the reply was cut": (Lives(), {"fate": "cut"}),
    "the server was killed": (Lives(deaths={SERVER: Span(1.5, 1.6)}), {"fate": "unknown", "ended_s": None}),
    "the queue was away, and then the worker was killed": (
        Lives(deaths={WORKER: Span(9, 9)}, queue_away=[Span(1.5, 8)]),
        {},
    ),
    "the caller was gone before anybody could look": (Lives(deaths={WORKER: Span(1, 1.1)}), {"pid": None}),
    "it is by a worker that was stopped before it sent": (Lives(stops={OTHER_WORKER: [Span(12, 19.5)]}), {}),
}
UNEXPLAINED: dict[str, tuple[Lives, dict[str, Any]]] = {
    "another worker was killed": (Lives(deaths={OTHER_WORKER: Span(1.5, 1.6)}), {}),
    "its worker was killed long after": (Lives(deaths={WORKER: Span(9, 9)}), {}),
    "its worker was stopped long before": (Lives(stops={WORKER: [Span(-9, 0)]}), {}),
    "the queue alone was away": (Lives(queue_away=[Span(1.5, 8)]), {}),
    "the caller hung up": (Lives(), {"fate": "gone"}),
    "the server died before": (Lives(deaths={SERVER: Span(0, 0.1)}), {"fate": "unknown", "ended_s": None}),
}


@pytest.mark.parametrize("audit", [bought_once, effects_once])
@pytest.mark.parametrize("why", EXPLAINED)
def test_what_was_in_flight_at_a_disturbance_may_be_done_again(audit: Audit, why: str) -> None:
    lives, fields = EXPLAINED[why]
    assert not again(audit, lives, **fields)


@pytest.mark.parametrize("audit", [bought_once, effects_once])
@pytest.mark.parametrize("why", UNEXPLAINED)
def test_no_other_disturbance_explains_that_it_was_done_again(audit: Audit, why: str) -> None:
    lives, fields = UNEXPLAINED[why]
    assert again(audit, lives, **fields)


@pytest.mark.parametrize(("fate", "breaches"), [("gone", 0), ("whole", 1)])
def test_a_caller_that_hung_up_unseen_may_be_a_worker_that_had_been_stopped(fate: str, breaches: int) -> None:
    earlier, later = call("b.0.0", at_s=1), call("b.0.0", at_s=20, pid=None, fate=fate)
    lives = Lives(stops={OTHER_WORKER: [Span(12, 19.5)]})
    assert len(bought_once(replace(sound(), calls=(earlier, later)), lives).breaches) == breaches


def test_what_was_in_flight_is_told_apart_from_what_had_just_been_answered() -> None:
    in_flight = bought_once(sound(), Lives(deaths={WORKER: Span(1.5, 1.6)})).note
    answered = bought_once(sound(), Lives(deaths={WORKER: Span(2.5, 2.6)})).note
    assert "cut: 1, of them bought again: 0; answered less than 1.5 s before one: 0" in in_flight
    assert "cut: 0, of them bought again: 0; answered less than 1.5 s before one: 1" in answered


def test_a_plan_follows_from_its_seed_and_has_200_kills_in_20_minutes() -> None:
    plans = [plan(seed=seed, minutes=20) for seed in range(20)]
    assert plans[3] == plan(seed=3, minutes=20)
    assert plans[3] != plans[4]
    assert min(sum(each.action in KILLS for each in planned) for planned in plans) >= 250
