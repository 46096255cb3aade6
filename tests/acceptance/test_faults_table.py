"""Every fault of a provider, on the real worker: the job's end or its wait, its code, and what it is charged.

All jobs of the table are in flight together, each in a lane of its own; the tests then
look at one each.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from schemas import JobResult, Status
from schemas.outcome import Code
from tests.at_work import Scene, Works, completion
from tests.loopback_provider import (
    Reply,
    answers,
    cut_connection,
    hang_up,
    malformed_json,
    status,
)
from tests.processes import until

MAX_ATTEMPTS = 2
PROVIDER_TIMEOUT_S = 2.0


@pytest.fixture(scope="module")
def works(servers_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Works]:
    """A worker that waits for its provider no longer than some seconds, and tries twice."""
    settings = {
        "ASSISTQ_PROCESSES": "1",
        "ASSISTQ_THREADS": "64",
        "ASSISTQ_PROVIDER_TIMEOUT_S": str(PROVIDER_TIMEOUT_S),
        "ASSISTQ_MAX_ATTEMPTS": str(MAX_ATTEMPTS),
    }
    with Works(tmp_path_factory.mktemp("faults"), servers_dir=servers_dir, **settings) as works:
        yield works


def error(code: int, message: str, name: str | None = None, headers: dict[str, str] | None = None) -> Reply:
    """Return an error in OpenAI's form."""
    return status(code, {"error": {"message": message, "type": None, "param": None, "code": name}}, headers)


@dataclasses.dataclass(frozen=True)
class Fault:
    """One row of the table: what the provider answers to every request, and what becomes of the job."""

    name: str
    reply: Reply
    code: Code | None
    status: Status = Status.FAILED
    asked: int = 1
    requests: int = 0
    attempts: int = 1
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Wait:
    """A fault that the job waits for, and no attempt is counted."""

    name: str
    reply: Reply
    code: Code
    at_least_s: float = 0.0


NEVER = threading.Event()
TWICE: dict[str, Any] = {"asked": MAX_ATTEMPTS, "attempts": MAX_ATTEMPTS}
BOUGHT: dict[str, Any] = {"requests": 1}

# The request itself is at fault, or the answer is one that no second try betters: once.
# The provider is at fault: tried again, each try counts, and the last one is the end.
FAULTS = [
    Fault("400", error(400, "no such parameter"), Code.REQUEST_REFUSED),
    Fault("413", error(413, "too large"), Code.REQUEST_REFUSED),
    Fault("422", status(422, {"detail": [{"loc": ["body", "n"], "msg": "too many"}]}), Code.REQUEST_REFUSED),
    Fault("400 context length", error(400, "too long", "context_length_exceeded"), Code.CONTEXT_LENGTH),
    Fault("400 context length in words", error(400, "maximum context length is 8192"), Code.CONTEXT_LENGTH),
    Fault("400 content filter", error(400, "held back", "content_filter"), Code.CONTENT_FILTER),
    Fault("content_filter at the end", completion("", finish_reason="content_filter"), Code.CONTENT_FILTER, **BOUGHT),
    Fault("refusal", completion(None, refusal="I cannot help with that."), Code.REFUSED_BY_MODEL, **BOUGHT),
    Fault(
        "length of an output",
        completion('{"a": ', finish_reason="length"),
        Code.OUTPUT_CUT_OFF,
        status=Status.INVALID_OUTPUT,
        fields={"output": {"type": "object"}},
        **BOUGHT,
    ),
    Fault("length of a text", completion("Once", finish_reason="length"), None, Status.SUCCEEDED, **BOUGHT),
    Fault("408", error(408, "too slow"), Code.SERVER_FAULT, **TWICE),
    Fault("409", error(409, "busy"), Code.CONFLICT, **TWICE),
    Fault("500", error(500, "oops"), Code.SERVER_FAULT, **TWICE),
    Fault("502 of a proxy", status(502, b"<html>Bad Gateway</html>"), Code.SERVER_FAULT, **TWICE),
    Fault("503", error(503, "overloaded"), Code.SERVER_FAULT, **TWICE),
    Fault("no answer in time", Reply(text="late", hold=NEVER), Code.REPLY_LOST, **TWICE),
    Fault("connection cut in mid-body", cut_connection(), Code.REPLY_LOST, **TWICE),
    Fault("connection closed without a byte", hang_up(), Code.REPLY_LOST, **TWICE),
    Fault("malformed JSON", malformed_json(), Code.REPLY_MALFORMED, **TWICE),
    Fault("JSON that is no completion", status(200, {"hello": "world"}), Code.REPLY_MALFORMED, **TWICE),
    Fault("no choices", status(200, {"choices": [], "usage": {}}), Code.REPLY_MALFORMED, **TWICE),
]  # fmt: skip
RETRIED = [fault for fault in FAULTS if fault.asked > 1]

WALLS = [
    Wait("401", error(401, "Incorrect API key", "invalid_api_key"), Code.KEY_REFUSED),
    Wait("403", error(403, "not for you"), Code.KEY_REFUSED),
    Wait("404", error(404, "The model does not exist", "model_not_found"), Code.MODEL_UNKNOWN),
    Wait("402", error(402, "pay first"), Code.QUOTA_EXHAUSTED),
    Wait("429 quota exhausted", error(429, "no credit left", "insufficient_quota"), Code.QUOTA_EXHAUSTED),
]
LIMITS = [
    Wait("429 with Retry-After", error(429, "slower", headers={"Retry-After": "2"}), Code.RATE_LIMITED, 2.0),
    Wait("429 with Retry-After-Ms", error(429, "slower", headers={"Retry-After-Ms": "100"}), Code.RATE_LIMITED, 0.1),
    Wait("429 without Retry-After", error(429, "slower"), Code.RATE_LIMITED, 5.0),
]


class Table:
    """The jobs of all rows: begun together, each with its scene."""

    def __init__(self, works: Works) -> None:
        self.works = works
        self.scenes: dict[str, Scene] = {}
        self.ids: dict[str, str] = {}
        for fault in FAULTS:
            self._begin(fault.name, lambda *_, fault=fault: fault.reply, **fault.fields)
        for fault in RETRIED:
            self._begin(f"{fault.name}, once", self._once(fault.reply))
        for wait in LIMITS:
            self._begin(wait.name, self._once(wait.reply))
        for wait in WALLS:
            self._begin(wait.name, lambda *_, wait=wait: wait.reply)

    def result(self, name: str) -> JobResult:
        """Return how the job of a row ended."""
        return self.works.results([self.ids[name]])[0]

    def _begin(self, name: str, script: Any, **fields: Any) -> None:
        scene = Scene(self.works)
        scene.assistant()
        scene.plays(script)
        self.scenes[name] = scene
        self.ids[name] = scene.enqueue(name, thread_id="t", **fields)

    @staticmethod
    def _once(reply: Reply) -> Any:
        left = [reply]
        return lambda *_: left.pop() if left else answers("at last")


@pytest.fixture(scope="module")
def table(works: Works) -> Table:
    """The table, begun."""
    return Table(works)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_ends_the_job_with_its_code_after_as_many_tries_as_make_sense(table: Table, fault: Fault) -> None:
    result, scene = table.result(fault.name), table.scenes[fault.name]
    assert (result.status, result.error_code) == (fault.status, fault.code), result
    assert (len(scene.asked), result.requests, result.attempts) == (fault.asked, fault.requests, fault.attempts)
    # What was answered is charged, and nothing else.
    assert (result.prompt_tokens, result.completion_tokens) == ((10, 5) if fault.requests else (0, 0))
    row = table.works.row(result.job_id)
    assert (row.status, row.error_code, row.error, row.attempts) == (
        fault.status,
        fault.code,
        result.error,
        fault.attempts,
    )
    assert scene.has_thread("t") is result.succeeded
    waits = scene.snoozes(result.job_id)
    assert [wait["code"] for wait in waits] == [fault.code] * (fault.asked - 1)
    if fault.asked > 1:
        assert f"gave up after {MAX_ATTEMPTS} attempts" in (result.error or "")


@pytest.mark.parametrize("fault", RETRIED, ids=lambda fault: fault.name)
def test_a_providers_fault_that_passes_costs_an_attempt_and_not_the_job(table: Table, fault: Fault) -> None:
    result = table.result(f"{fault.name}, once")
    assert (result.status, result.output, result.error_code) == ("succeeded", "at last", None)
    assert (result.attempts, result.requests) == (2, 1)


@pytest.mark.parametrize("wait", WALLS, ids=lambda wait: wait.name)
def test_a_wall_keeps_the_job_waiting_at_no_attempt_until_it_is_gone(table: Table, wait: Wait) -> None:
    scene, works, job_id = table.scenes[wait.name], table.works, table.ids[wait.name]
    until(lambda: scene.snoozes(job_id), what="the job meets the wall and waits")
    (fault,) = works.producer.lane_faults(scene.workspace)
    assert fault.code == wait.code
    assert f"HTTP {wait.reply.status}: " in fault.reason
    # The whole lane is held: another job of it does not even ask.
    behind = scene.enqueue("behind")
    assert not works.redis.hexists(f"aq:job:{job_id}", "attempts")
    asked = len(scene.asked)

    scene.plays(lambda *_: answers("at last"))
    works.producer.forget_lane_faults(scene.job())
    for result in works.results([job_id, behind]):
        assert (result.status, result.output, result.attempts) == ("succeeded", "at last", 1)
    assert len(scene.asked) == asked + 2
    assert [each["code"] for each in scene.snoozes(job_id)] == [wait.code] * asked
    assert works.producer.lane_faults(scene.workspace) == []


@pytest.mark.parametrize("wait", LIMITS, ids=lambda wait: wait.name)
def test_a_rate_limit_is_waited_for_as_long_as_the_provider_says_and_counts_as_no_attempt(
    table: Table, wait: Wait
) -> None:
    result = table.result(wait.name)
    assert (result.status, result.output, result.attempts, result.requests) == ("succeeded", "at last", 1, 1)
    told, *_others = table.scenes[wait.name].snoozes(result.job_id)
    assert told["code"] == wait.code
    assert told["delay_s"] >= wait.at_least_s
    # No wall that a person would have to remove.
    assert table.works.producer.lane_faults(table.scenes[wait.name].workspace) == []
    assert len(table.scenes[wait.name].asked) == 2


def test_a_refused_connection_keeps_the_job_waiting_at_no_attempt_until_the_provider_is_back(table: Table) -> None:
    works = table.works
    works.results(job_id for name, job_id in table.ids.items() if name not in {wait.name for wait in WALLS})
    scene = Scene(works)
    scene.assistant()
    with works.provider_away():
        job_id = scene.enqueue("go")
        until(lambda: scene.snoozes(job_id), what="the job meets the wall and waits")
        (fault,) = works.producer.lane_faults(scene.workspace)
        assert fault.code is Code.PROVIDER_UNREACHABLE
        assert "no connection to http://127.0.0.1:" in fault.reason
    works.producer.forget_lane_faults(scene.job())
    (result,) = works.results([job_id])
    assert (result.status, result.attempts, result.requests) == ("succeeded", 1, 1)
    assert len(scene.asked) == 1
    assert works.producer.lane_faults(scene.workspace) == []


def test_a_503_that_says_how_long_is_waited_for_at_least_as_long(works: Works) -> None:
    scene = Scene(works)
    scene.assistant()
    scene.replies(error(503, "overloaded", headers={"Retry-After": "2"}), answers("at last"))
    result = scene.succeeds("go")
    assert result.attempts == 2
    (wait,) = scene.snoozes(result.job_id)
    assert wait["delay_s"] >= 2


def test_what_was_bought_before_a_fault_is_neither_lost_nor_bought_again(works: Works) -> None:
    scene = Scene(works)
    scene.assistant()
    scene.replies(
        completion(calls=[("c1", "nothing", {})], usage=(10, 5)),
        error(500, "oops"),
        completion("Done.", usage=(20, 6)),
    )
    result = scene.succeeds("go")
    assert (result.output, result.requests, result.attempts) == ("Done.", 2, 2)
    assert (result.prompt_tokens, result.completion_tokens) == (30, 11)
    _, lost, again = scene.asked
    assert lost == again
