"""A worker that is told to end does so within its grace, whatever hangs, and others go on with what it had."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from schemas import names
from tests.at_work import Scene, Works, completion
from tests.loopback_provider import Reply, answers, hang_until
from tests.processes import until
from tests.supervised import nobody_left, stopped, tree_of, worker_pids

pytestmark = pytest.mark.timeout(240)

SETTINGS = {"ASSISTQ_PROCESSES": "2", "ASSISTQ_THREADS": "4", "ASSISTQ_SHUTDOWN_GRACE_S": "1"}

Kill = Callable[[int, int], None]


@pytest.fixture(scope="module")
def shared(servers_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Works]:
    with Works(tmp_path_factory.mktemp("works"), servers_dir=servers_dir, **SETTINGS) as works:
        yield works


@pytest.fixture
def works(shared: Works) -> Works:
    """The works, with one new worker and a new log."""
    shared.kill()
    shared.log.write_bytes(b"")
    shared.start()
    return shared


@pytest.fixture
def postgres_works(tmp_path: Path, servers_dir: Path, postgres_url: str) -> Iterator[Works]:
    with Works(tmp_path, servers_dir=servers_dir, database_url=postgres_url, **SETTINGS) as works:
        yield works


def master_of(works: Works) -> int:
    (process,) = works._processes
    return process.pid


def offers_no_place(works: Works) -> bool:
    return works.producer.capacity() == 0


def overran(works: Works, waits_for: str) -> bool:
    return any(waits_for in event["waits_for"] for event in works.logged("shutdown_overrun"))


@pytest.mark.parametrize(
    ("kill", "number"),
    [(os.kill, signal.SIGTERM), (os.killpg, signal.SIGTERM), (os.killpg, signal.SIGINT)],
    ids=["SIGTERM", "SIGTERM to the group", "Ctrl-C"],
)
def test_told_twice_it_ends_in_its_grace_and_gives_back_what_did_not(works: Works, kill: Kill, number: int) -> None:
    scene, never = Scene(works), threading.Event()
    scene.assistant(tools=[{"type": "python", "name": "echo"}])
    told = threading.Event()

    def script(body: Any, _n: int) -> Reply:
        if body["messages"][-1]["role"] == "user":
            return completion(calls=[("c1", "echo", {"text": "once"})])
        return answers("done") if told.is_set() else hang_until(never)

    scene.plays(script)
    ids = [scene.enqueue(f"row {row}") for row in range(4)]
    until(lambda: len(scene.asked) == 8, what="each has its first step done, and its second in flight")
    processes = tree_of(master_of(works))
    kill(master_of(works), number)
    until(lambda: offers_no_place(works), what="it takes no more jobs")
    kill(master_of(works), number)
    nobody_left(processes)
    told.set()

    assert not works.logged("shutdown_overrun")
    jobs = [works.redis.hgetall(names.job(job_id)) for job_id in ids]
    # Back in its line at once, and no death of a worker.
    assert [(job[b"state"], job.get(b"deaths")) for job in jobs] == [(b"waiting", None)] * 4
    assert works.redis.zcard(names.LEASES) == 0
    works.kill()
    works.start()
    assert {result.output for result in works.results(ids)} == {"done"}
    # The first step was journaled; only what was in flight is asked again.
    assert len(scene.asked) == 12


def test_a_tool_that_never_returns_its_thread_holds_up_nobody(works: Works, tmp_path: Path) -> None:
    scene = Scene(works)
    scene.assistant(tools=[{"type": "python", "name": "block", "timeout_s": 100}])
    scene.replies(completion(calls=[("c1", "block", {"directory": str(tmp_path)})]), completion("done"))
    job_id = scene.enqueue("go")
    until((tmp_path / "blocked").exists, what="the tool blocks its thread")
    processes = tree_of(master_of(works))
    os.kill(master_of(works), signal.SIGTERM)
    nobody_left(processes)
    assert works.redis.hget(names.job(job_id), "state") == b"waiting"
    works.kill()
    works.start()
    assert works.results([job_id])[0].output == "done"


def test_a_thread_for_which_python_waits_is_left_behind(works: Works) -> None:
    scene = Scene(works)
    scene.assistant(tools=[{"type": "python", "name": "linger"}])
    scene.replies(completion(calls=[("c1", "linger", {})]), completion("done"))
    assert scene.succeeds("go").output == "done"
    processes = tree_of(master_of(works))
    os.kill(master_of(works), signal.SIGTERM)
    nobody_left(processes)
    assert any("lingering at threading.py" in str(event["threads"]) for event in works.logged("shutdown_overrun"))


def test_a_process_that_stands_still_is_killed_by_its_master(works: Works) -> None:
    processes = tree_of(master_of(works))
    with stopped(worker_pids(works, master_of(works))[:1]):
        os.kill(master_of(works), signal.SIGTERM)
        nobody_left(processes)
    assert overran(works, "processes")


def test_redis_may_stand_still(works: Works) -> None:
    scene, never = Scene(works), threading.Event()
    scene.assistant()
    scene.plays(lambda _body, _n: hang_until(never) if len(scene.asked) == 1 else answers("done"))
    job_id = scene.enqueue("go")
    until(lambda: scene.asked, what="a call is in flight")
    processes = tree_of(master_of(works))
    with stopped([int(works.redis.info("server")["process_id"])]):
        os.kill(master_of(works), signal.SIGTERM)
        nobody_left(processes)
    works.kill()
    works.start()
    assert works.results([job_id])[0].output == "done"


def test_postgresql_may_stand_still(postgres_works: Works, postgres_server_url: str) -> None:
    works, scene, asked = postgres_works, Scene(postgres_works), threading.Event()
    scene.assistant()
    scene.plays(lambda _body, _n: hang_until(asked, then=answers("done")))
    job_id = scene.enqueue("go")
    until(lambda: scene.asked, what="a call is in flight")
    processes = tree_of(master_of(works))
    with psycopg.connect(postgres_server_url) as connection:
        server = psutil.Process(connection.info.backend_pid).parent()
    assert server is not None
    pids = [process.pid for process in tree_of(server.pid)]
    with stopped(pids):
        asked.set()
        until(lambda: works.redis.llen(names.journal(job_id)) == 1, what="the reply is journaled")
        os.kill(master_of(works), signal.SIGTERM)
        nobody_left(processes)
    assert overran(works, "the database")
    assert works.redis.hget(names.job(job_id), "state") == b"waiting"
    works.kill()
    works.start()
    assert works.results([job_id])[0].output == "done"
    assert len(scene.asked) == 1
