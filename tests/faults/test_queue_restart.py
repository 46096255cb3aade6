"""The queue's server is killed and started again in the middle of a batch: workers wait, and go on by themselves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas import Status
from tests.at_work import PROCESSES, THREADS, Scene, Works
from tests.loopback_provider import Reply

ROWS = 120


@pytest.fixture
def works(tmp_path: Path, servers_dir: Path) -> Iterator[Works]:
    # The limit binds, so that calls wait for their turn at any moment.
    with Works(tmp_path, servers_dir=servers_dir, ASSISTQ_RPM="900", ASSISTQ_BURST_S="1") as works:
        yield works


def test_a_batch_under_a_binding_limit_outlives_a_kill_of_the_queue(works: Works) -> None:
    scene = Scene(works)
    scene.assistant()
    scene.plays(lambda _body, _n: Reply(text="positive", delay_s=0.2))
    jobs = [scene.job(f"row {number}") for number in range(ROWS)]
    batch = works.producer.enqueue_many(jobs, batch_id="b")
    works.provider.wait_for_requests(30, deadline_s=60)
    works.kill_queue()
    works.start_queue_again()
    assert batch.wait(timeout_s=120).counts == {Status.SUCCEEDED: ROWS}
    asked = [request["messages"][-1]["content"] for request in scene.asked]
    assert len(set(asked)) == ROWS
    # Only replies that could not be journaled meanwhile are bought again.
    assert len(asked) <= ROWS + PROCESSES * THREADS
