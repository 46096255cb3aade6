"""The database is away for a while: replies wait in Redis, and nothing is bought twice."""

from __future__ import annotations

import itertools
import json
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas import Status, names
from tests.at_work import AT_HOME, PROCESSES, THREADS, Scene, Works
from tests.loopback_http import LoopbackHttp, Told
from tests.loopback_provider import Reply
from tests.processes import until
from tests.servers import OwnPostgres

ROWS = 60
IN_FLIGHT = PROCESSES * THREADS
_numbers = itertools.count(1)


@pytest.fixture
def postgres(servers_dir: Path) -> Iterator[OwnPostgres]:
    with OwnPostgres(servers_dir / f"own-pg-{next(_numbers)}") as postgres:
        yield postgres


@pytest.fixture
def works(tmp_path: Path, servers_dir: Path, postgres: OwnPostgres) -> Iterator[Works]:
    with Works(tmp_path, servers_dir=servers_dir, database_url=postgres.url) as works:
        yield works


def kept_results(works: Works) -> int:
    """Return how many jobs wait in Redis with their end."""
    journals = [works.redis.lindex(key, -1) for key in works.redis.scan_iter(names.journal("*"))]
    return sum(1 for last in journals if last and json.loads(str(last, "utf-8"))["kind"] == "result")


def assert_each_row_bought_once(scene: Scene) -> None:
    asked = [request["messages"][-1]["content"] for request in scene.asked]
    assert sorted(asked) == sorted(f"row {number}" for number in range(ROWS))


def test_while_postgres_is_stopped_replies_wait_and_no_other_job_is_begun(works: Works, postgres: OwnPostgres) -> None:
    scene, gate = Scene(works, workspace=AT_HOME), threading.Event()
    scene.assistant()
    scene.plays(lambda _body, _n: Reply(text="positive", hold=gate))
    with LoopbackHttp(lambda _asked: Told(status=204)) as receiver:
        jobs = [scene.job(f"row {number}") for number in range(ROWS)]
        batch = works.producer.enqueue_many(jobs, batch_id="b", webhook=f"{receiver.url}/hook")
        works.provider.wait_for_requests(IN_FLIGHT, deadline_s=60)
        postgres.stop_at_once()
        gate.set()
        until(lambda: kept_results(works) == IN_FLIGHT, what="what was in flight waits with its end", timeout_s=60)
        until(lambda: works.producer.capacity() == PROCESSES, what="each process asks for one job at a time")
        begun = len(works.logged("job_started"))
        until(lambda: len(works.logged("job_started")) >= begun + PROCESSES, what="the database is tried again")
        # Those waited all the time, and nobody asked for them: a worker that cannot read what a job
        # needs makes no call for it.
        assert len(scene.asked) == IN_FLIGHT
        assert len(works.logged("job_started")) <= begun + 4 * PROCESSES
        postgres.start()
        assert batch.wait(timeout_s=100).counts == {Status.SUCCEEDED: ROWS}
        until(lambda: receiver.asked, what="the webhook is told")
    assert_each_row_bought_once(scene)
    assert {works.row(f"b.{row}").output for row in range(ROWS)} == {"positive"}
    assert works.producer.capacity() == IN_FLIGHT
    assert not works.redis.exists(names.LEASES, names.PLACES)


def test_a_postgres_that_hangs_costs_no_lease(works: Works, postgres: OwnPostgres) -> None:
    scene, gate = Scene(works), threading.Event()
    scene.assistant()
    scene.plays(lambda _body, _n: Reply(text="positive", hold=gate))
    batch = works.producer.enqueue_many([scene.job(f"row {number}") for number in range(ROWS)], batch_id="b")
    works.provider.wait_for_requests(IN_FLIGHT, deadline_s=60)
    with postgres.hung():
        gate.set()
        until(lambda: works.provider.in_flight == 0, what="the provider has answered")
        leases = dict(works.redis.zrange(names.LEASES, 0, -1, withscores=True))
        running = [each for each in leases if works.redis.hget(f"aq:job:{each.decode()}", "state") == b"running"]
        assert len(running) == IN_FLIGHT
        # Longer than any lease lasts without its worker.
        later_ms = max(leases.values()) + 6_000
        until(
            lambda: all((works.redis.zscore(names.LEASES, each) or 0) > later_ms for each in running),
            what="every lease was renewed",
            timeout_s=60,
        )
    assert batch.wait(timeout_s=100).counts == {Status.SUCCEEDED: ROWS}
    assert_each_row_bought_once(scene)
    assert not works.logged("stale_work_refused")


@pytest.mark.timeout(300)
def test_a_sqlite_that_another_program_has_locked_is_waited_for(tmp_path: Path, servers_dir: Path) -> None:
    with Works(tmp_path, servers_dir=servers_dir) as works:
        scene, gate = Scene(works), threading.Event()
        scene.assistant()
        scene.plays(lambda _body, _n: Reply(text="positive", hold=gate))
        batch = works.producer.enqueue_many([scene.job(f"row {number}") for number in range(ROWS)], batch_id="b")
        works.provider.wait_for_requests(IN_FLIGHT, deadline_s=60)
        lock = sqlite3.connect(tmp_path / "assistq.db", isolation_level=None)
        lock.execute("BEGIN EXCLUSIVE")
        gate.set()
        # Longer than the driver waits for a lock.
        until(lambda: works.logged("service_fault") or kept_results(works), what="a write gave up", timeout_s=100)
        lock.execute("ROLLBACK")
        lock.close()
        assert batch.wait(timeout_s=100).counts == {Status.SUCCEEDED: ROWS}
        assert_each_row_bought_once(scene)
