"""Two workers, each with a master of its own: what one of them loses the other goes on with."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlmodel import Session, select

from schemas import Status
from schemas.tables import Batch, Delivery, Job
from tests.at_work import Scene, Works
from tests.loopback_provider import Reply, answers, default_reply, hang_until
from tests.processes import is_alive, until
from tests.supervised import nobody_left, stopped, tree_of, worker_pids

THREADS = 4


@pytest.fixture
def two_processes(tmp_path: Path, servers_dir: Path) -> Iterator[Works]:
    settings = {"ASSISTQ_PROCESSES": "2", "ASSISTQ_THREADS": str(THREADS)}
    with Works(tmp_path, servers_dir=servers_dir, **settings) as works:
        yield works


@pytest.fixture
def one_process(tmp_path: Path, servers_dir: Path, postgres_url: str) -> Iterator[Works]:
    settings = {"ASSISTQ_PROCESSES": "1", "ASSISTQ_THREADS": str(THREADS), "ASSISTQ_SHUTDOWN_GRACE_S": "1"}
    with Works(tmp_path, servers_dir=servers_dir, database_url=postgres_url, **settings) as works:
        yield works


@pytest.mark.timeout(300)
def test_what_a_killed_worker_process_had_in_flight_goes_on_at_another_master(two_processes: Works) -> None:
    works, scene, go = two_processes, Scene(two_processes), threading.Event()
    scene.assistant()
    in_flight = 2 * works.capacity
    scene.plays(lambda body, n: hang_until(go, then=answers("fine")) if n <= in_flight else default_reply(body, n))
    hit = works.start()
    processes = tree_of(hit)
    batch = works.producer.enqueue_many([scene.job(f"row {row}") for row in range(in_flight)], batch_id="b")
    works.provider.wait_for_requests(in_flight, deadline_s=60)

    # The kernel does the same where memory runs out.
    killed, graceful = worker_pids(works, hit)
    os.kill(killed, signal.SIGKILL)
    until(lambda: not is_alive(killed), what="the process is dead")
    go.set()
    assert batch.wait(timeout_s=60).counts == {Status.SUCCEEDED: in_flight}

    # Its master lets the other process finish what it had, and ends, so that somebody starts it again.
    nobody_left(processes)
    assert graceful in {process.pid for process in processes}
    started = [event["job_id"] for event in works.logged("job_started")]
    again = {job_id for job_id in started if started.count(job_id) > 1}
    assert len(again) == THREADS
    assert len(scene.asked) == in_flight + THREADS
    assert {result.attempts for result in works.results(f"b.{row}" for row in range(in_flight))} == {1}


@pytest.mark.timeout(300)
def test_a_worker_that_slept_longer_than_its_leases_writes_nothing_when_it_wakes(
    one_process: Works, postgres_url: str
) -> None:
    works, scene, go = one_process, Scene(one_process), threading.Event()
    scene.assistant()

    def script(body: Any, _n: int) -> Reply:
        text = body["messages"][-1]["content"]
        asked = [each["messages"][-1]["content"] for each in scene.asked].count(text)
        return answers("settling") if text == "settle" else hang_until(go) if asked == 1 else answers("in time")

    scene.plays(script)
    (sleeper,) = works._processes
    with psycopg.connect(postgres_url.replace("+psycopg", "")) as connection:
        # Reads go on, and writes wait: a job stands in the middle of its settling.
        connection.execute("LOCK TABLE jobs IN SHARE ROW EXCLUSIVE MODE")
        jobs = [scene.job("call"), scene.job("turn", thread_id="t"), scene.job("settle", thread_id="u")]
        batch = works.producer.enqueue_many(jobs, batch_id="b", webhook="http://127.0.0.1:9/hook")
        works.provider.wait_for_requests(3, deadline_s=60)
        waits = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        until(lambda: connection.execute(waits).fetchone() == (1,), what="the settling waits for the table")
        works.start()
        with stopped(process.pid for process in tree_of(sleeper.pid)):
            # The server writes the sleeper's row now, in a transaction that nobody ends.
            connection.rollback()
            assert batch.wait(timeout_s=90).counts == {Status.SUCCEEDED: 3}
        go.set()
        until(
            lambda: {event["job_id"] for event in works.logged("stale_work_refused")} == {"b.0", "b.1", "b.2"},
            what="what it still wanted to write is refused",
            timeout_s=60,
        )
    # It ends in order, so that nothing of it is still to be written.
    processes = tree_of(sleeper.pid)
    sleeper.terminate()
    sleeper.wait(60)
    nobody_left(processes)

    assert batch.wait(timeout_s=0).counts == {Status.SUCCEEDED: 3}
    assert [result.output for result in works.results(["b.0", "b.1", "b.2"])] == ["in time", "in time", "settling"]
    assert scene.turns("t") == [("user", "turn"), ("assistant", "in time")]
    assert scene.turns("u") == [("user", "settle"), ("assistant", "settling")]
    with Session(works.engine) as session:
        assert sorted(session.exec(select(Job.id))) == ["b.0", "b.1", "b.2"]
        assert len(session.exec(select(Batch.id)).all()) == 1
        assert len(session.exec(select(Delivery.id)).all()) == 1
    # What was in flight is asked once more, and what was journaled is not.
    asked = [body["messages"][-1]["content"] for body in scene.asked]
    assert sorted(asked) == ["call", "call", "settle", "turn", "turn"]
    assert len(works.logged("batch_ended")) == 1
