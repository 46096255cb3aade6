"""A job that kills its worker each time ends as failed, and what ran beside it does not."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from schemas import Status
from tests.at_work import Scene, completion
from tests.loopback_provider import Reply, hang_until
from tests.processes import until
from tests.supervised import SupervisedWorks

KILLS = 3
INNOCENTS = 5
# The worker is started again each time, and the leases have to end.
ROUND_WITHIN_S = 100.0


@pytest.fixture
def works(tmp_path: Path, servers_dir: Path) -> Iterator[SupervisedWorks]:
    # One process: whoever runs beside the poison dies with it.
    settings = {"ASSISTQ_PROCESSES": "1", "ASSISTQ_THREADS": "8", "ASSISTQ_MAX_KILLS": str(KILLS)}
    with SupervisedWorks(tmp_path, servers_dir=servers_dir, **settings) as works:
        yield works


@pytest.mark.timeout(400)
def test_a_job_that_kills_its_worker_ends_after_so_many_kills_and_all_others_succeed(
    works: SupervisedWorks, tmp_path: Path
) -> None:
    poison, good = Scene(works, workspace="acme"), Scene(works, workspace="acme")
    poison.assistant(tools=[{"type": "python", "name": "die", "timeout_s": 120}])
    good.assistant()
    poison.replies(completion(calls=[("c1", "die", {"directory": str(tmp_path)})], usage=(20, 7)))
    never = threading.Event()

    def asked() -> Counter[str]:
        return Counter(body["messages"][-1]["content"] for body in good.asked)

    def script(body: Any, _n: int) -> Reply:
        # In flight at the first kills, and slow after these.
        times = asked()[body["messages"][-1]["content"]]
        return hang_until(never) if times < KILLS else Reply(text="fine", delay_s=2)

    good.plays(script)
    rows = [f"row {number}" for number in range(INNOCENTS)]
    batch = works.producer.enqueue_many([poison.job("go"), *(good.job(row) for row in rows)], batch_id="b")
    for number in range(1, KILLS):
        until((tmp_path / f"kill-{number}").exists, what=f"it is about to kill ({number})", timeout_s=ROUND_WITHIN_S)
        in_flight = dict.fromkeys(rows, number)
        until(partial(lambda each: asked() == each, in_flight), what="all others are in flight", timeout_s=60)
        (tmp_path / f"go-{number}").touch()

    def waits_or_ran() -> bool:
        waited = {int(each["job_id"].rpartition(".")[2]) for each in works.logged("job_snoozed") if _for_place(each)}
        return all(number + 1 in waited or asked()[row] == KILLS for number, row in enumerate(rows))

    until((tmp_path / f"kill-{KILLS}").exists, what="it is about to kill for the last time", timeout_s=ROUND_WITHIN_S)
    until(waits_or_ran, what="each other one waits for the place, or has had it", timeout_s=60)
    (tmp_path / f"go-{KILLS}").touch()

    ended = batch.wait(timeout_s=ROUND_WITHIN_S)
    assert ended.counts == {Status.FAILED: 1, Status.SUCCEEDED: INNOCENTS}
    result = works.results(["b.0"])[0]
    assert (result.status, result.error_code) == (Status.FAILED, "killed_workers")
    assert f"{KILLS} times" in (result.error or "")
    # Its reply was received once, and counts.
    assert (len(poison.asked), result.requests, result.prompt_tokens) == (1, 1, 20)
    assert len(list(tmp_path.glob("kill-*"))) == KILLS
    # Each kill lost the one call that each of them had in flight, and no more.
    assert asked() == dict.fromkeys(rows, KILLS)
    assert {each.attempts for each in works.results(f"b.{number + 1}" for number in range(INNOCENTS))} == {1}


def _for_place(snoozed: dict[str, Any]) -> bool:
    return bool(snoozed["code"] == "suspect_wait")
