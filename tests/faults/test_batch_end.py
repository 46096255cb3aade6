"""A worker that is killed between the last writes of a batch: it ends once all the same, and is told of once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url
from sqlmodel import Session, select

from schemas import Status, names
from schemas.tables import Batch, Delivery, Job
from tests.at_work import ENDS_WITHIN_S, Scene, Works
from tests.processes import until


@pytest.fixture
def mortal(servers_dir: Path, tmp_path: Path, postgres_url: str) -> Iterator[Works]:
    """A worker of the test's own, to be killed, on PostgreSQL: there one can see who waits for a lock."""
    with Works(tmp_path, servers_dir=servers_dir, database_url=postgres_url, ASSISTQ_PROCESSES="1") as works:
        yield works


@contextmanager
def killed_after_writing_to(works: Works, table: type[Job] | type[Batch]) -> Iterator[None]:
    """Kill -9 the worker when its next row of the table is in SQL, and before it writes another word to Redis.

    What is done inside brings the worker to that row.
    """
    url = make_url(works.database_url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url) as connection, psycopg.connect(url, autocommit=True) as observer:
        connection.execute(f"LOCK TABLE {table.__tablename__} IN SHARE ROW EXCLUSIVE MODE")
        yield
        waits = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        until(lambda: (observer.execute(waits).fetchone() or (0,))[0], what="the worker is about to write the row")
        works.redis.execute_command("CLIENT", "PAUSE", 600_000, "WRITE")
        connection.rollback()
        until(lambda: rows(works, table), what="the row is written")
    victim = works.process_group
    os.killpg(victim, signal.SIGKILL)
    # What it has sent to a server that waits is dropped with its connections.
    works.queue.client.connection_pool.disconnect()
    until(lambda: len(works.redis.client_list()) == 1, what="the server has seen that the worker is gone")
    works.redis.execute_command("CLIENT", "UNPAUSE")
    works.kill()


def rows(works: Works, table: type[Job] | type[Batch] | type[Delivery]) -> int:
    with Session(works.engine) as session:
        return len(session.exec(select(table)).all())


def test_a_batch_ends_once_though_its_worker_is_killed_before_it_can_tell_redis_of_the_last_job_and_of_the_end(
    mortal: Works,
) -> None:
    scene = Scene(mortal)
    scene.assistant()
    with killed_after_writing_to(mortal, Job):
        batch = mortal.producer.enqueue_many([scene.job("only")], batch_id="b", webhook="http://127.0.0.1:9/hook")
    told = batch.status()
    assert told is not None
    assert (told.total, told.finished) == (1, 0)
    assert rows(mortal, Batch) == 0

    with killed_after_writing_to(mortal, Batch):
        mortal.start_again()
    told = batch.status()
    assert told is not None
    assert (told.finished, told.ended) == (1, False)

    mortal.start_again()
    ended = batch.wait(timeout_s=ENDS_WITHIN_S)
    assert (ended.state, ended.counts, ended.requests) == ("completed", {Status.SUCCEEDED: 1}, 1)
    with Session(mortal.engine) as session:
        (row,) = session.exec(select(Batch)).all()
        assert (row.state, row.counts, row.requests) == ("completed", {"succeeded": 1}, 1)
        assert [delivery.event_type for delivery in session.exec(select(Delivery))] == ["batch.completed"]
    assert rows(mortal, Job) == 1
    assert len(scene.asked) == 1
    assert not mortal.redis.exists(names.ENDING, names.BATCHES, names.LEASES)
