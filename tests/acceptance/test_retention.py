"""What is left of finished work: in SQL until it is old, in Redis for a day at most."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import Engine, func, update
from sqlmodel import Session, select

from schemas import names
from schemas.database import engine_for, ensure_tables
from schemas.tables import Batch, Delivery, Job, Thread, ThreadMessage
from tests.acceptance.test_webhook import receiver
from tests.at_work import AT_HOME, Scene, Works, completion
from tests.command_line import Installation
from tests.loopback_provider import Reply, answers
from tests.processes import until

OLD = datetime.now(UTC) - timedelta(days=40)
TABLES: tuple[Any, ...] = (Job, Batch, Thread, ThreadMessage, Delivery)

# What Redis may hold when all work is done: keys of the whole queue, and of lanes, that do not grow with jobs.
OF_THE_QUEUE = {
    "aq:expiry", "aq:pruning", "aq:ring", "aq:ring:left", "aq:ring:now",
    "aq:routes", "aq:swept", "aq:turn", "aq:workers",
}  # fmt: skip
OF_DRAMATIQ = ("aq:dq:__heartbeats__", "aq:dq:__acks__.")
# These end by themselves.
WITH_A_TIME = ("aq:result:", "aq:batch:", "aq:rows:", "aq:limit:", "aq:cells:", "aq:tickets:", "aq:held:", "aq:seen:",
               "aq:flush", "aq:parts:", "aq:rpm:")  # fmt: skip


@pytest.fixture(scope="module")
def works(servers_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Works]:
    """A worker that keeps what ended for 30 days."""
    directory = tmp_path_factory.mktemp("works")
    with Works(directory, servers_dir=servers_dir, ASSISTQ_RETENTION_DAYS="30") as works:
        yield works


def rows_of(engine: Engine) -> dict[str, int]:
    with Session(engine) as session:
        return {table.__tablename__: session.exec(select(func.count()).select_from(table)).one() for table in TABLES}


def make_old(engine: Engine) -> None:
    """Make it as if all that is in SQL had ended 40 days ago."""
    with engine.begin() as connection:
        connection.execute(update(Job).values(finished_at=OLD))
        connection.execute(update(Batch).values(finished_at=OLD))
        connection.execute(update(Thread).values(created_at=OLD))
        connection.execute(update(ThreadMessage).values(created_at=OLD))
        connection.execute(update(Delivery).values(next_attempt_at=OLD))


def test_redis_holds_nothing_of_finished_jobs_but_what_ends_by_itself(works: Works) -> None:
    scene = Scene(works, workspace=AT_HOME)
    scene.assistant(tools=[{"type": "python", "name": "echo"}])

    def script(body: Any, _n: int) -> Reply:
        if body["messages"][-1]["role"] == "tool":
            return answers("done")
        return completion(calls=[("c1", "echo", {"text": "hi"})])

    scene.plays(script)
    with receiver() as (url, received):
        jobs = [scene.job(f"no {number}", thread_id=f"t{number % 3}") for number in range(12)]
        batch = works.producer.enqueue_many(jobs, webhook=url)
        assert batch.wait(timeout_s=60).finished == len(jobs)
        unrecorded = scene.enqueue("not to be kept", doNotRecord=True)
        streamed = scene.enqueue("to be streamed", tell="stream")
        assert all(result.succeeded for result in works.results([unrecorded, streamed, scene.enqueue("alone")]))
        assert works.redis.exists(names.parts(streamed))
        until(lambda: received, what="the webhook is delivered")

    def left_without_reason() -> list[str]:
        return [
            key for key in sorted(map(bytes.decode, cast("list[bytes]", works.redis.keys("*")))) if not may_stay(key)
        ]

    def may_stay(key: str) -> bool:
        if key in OF_THE_QUEUE or key.startswith(OF_DRAMATIQ):
            return True
        return key.startswith(WITH_A_TIME) and works.redis.ttl(key) > 0

    # Acknowledged messages of Dramatiq, and reservations, leave a moment after the job.
    with suppress(AssertionError):
        until(lambda: not left_without_reason(), what="nothing else is left", timeout_s=30)
    assert left_without_reason() == []
    assert works.redis.hlen(names.ROUTES) == 1
    kept = cast("list[bytes]", works.redis.keys("aq:result:*"))
    assert len(kept) == len(jobs) + 3
    ttls = {key.decode(): works.redis.ttl(key) for key in kept}
    assert ttls.pop(names.result(unrecorded)) <= names.UNRECORDED_RESULT_TTL_S
    assert max(ttls.values()) <= names.RESULT_TTL_S


def test_one_process_prunes_what_is_old_while_others_settle_and_a_kill_in_the_middle_does_no_harm(
    works: Works,
) -> None:
    scene = Scene(works)
    scene.assistant()
    scene.succeeds("a turn", thread_id="t1")
    batch = works.producer.enqueue_many([scene.job(f"no {number}") for number in range(30)])
    batch.wait(timeout_s=60)
    works.kill()
    make_old(works.engine)
    with Session(works.engine) as session:
        row = session.exec(select(Job).where(Job.batch_id == batch.id)).first()
        assert row is not None
        values = {**row.model_dump(exclude={"id", "batch_id"}), "finished_at": OLD}
        session.add_all([Job(**values, id=f"single-{number}") for number in range(3_000)])
        session.commit()
    before = rows_of(works.engine)
    works.redis.delete(names.PRUNING)

    works.start_again()
    until(lambda: rows_of(works.engine)["jobs"] < before["jobs"], what="it has begun to prune")
    works.kill()
    # As when the hour is over.
    works.redis.delete(names.PRUNING)
    works.start_again()
    assert scene.succeeds("a turn", thread_id="t2").output
    until(lambda: sum(rows_of(works.engine).values()) == 4, what="all that is old is gone", timeout_s=60)
    assert rows_of(works.engine) == {"jobs": 1, "batches": 0, "threads": 1, "thread_messages": 2, "deliveries": 0}
    # By one process of each round; by none of a round that was killed when all was gone.
    assert len(works.logged("old_rows_pruned")) <= 2
    assert 0 < works.redis.ttl(names.PRUNING) <= 3600
    # A thread that was pruned begins anew.
    scene.succeeds("hello again", thread_id="t1")
    assert [message.role for message in scene.thread("t1")] == ["user", "assistant"]


class TestCommand:
    def test_it_counts_then_deletes_and_shows_both(self, shell: Installation) -> None:
        command = (shell.reviews(5), "--assistant", shell.sentiment())
        batch_id = shell.run("run", *command, "--json").json["batch_id"]
        engine = engine_for(shell.settings.effective_database_url)
        make_old(engine)

        messages = rows_of(engine)["thread_messages"]
        counts = {"jobs": 5, "batches": 1, "threads": 5, "messages": messages, "deliveries": 0, "files": 0}
        told = shell.run("prune", "--older-than", "30d", "--dry-run", "--json")
        assert told.code == 0, told.err
        assert told.json.items() >= {**counts, "dry_run": True}.items()
        assert shell.run("results", batch_id).out.count("\n") == 6

        none = shell.run("prune", "--older-than", "7w", "--json")
        assert none.json.items() >= dict.fromkeys(counts, 0).items()
        ended = shell.run("prune", env={"ASSISTQ_RETENTION_DAYS": "30"})
        assert ended.code == 0, ended.err
        assert [line.split() for line in ended.out.splitlines()] == [
            ["rows", "deleted"],
            *([name, str(count)] for name, count in counts.items()),
        ]
        assert sum(rows_of(engine).values()) == 0
        engine.dispose()
        shell.nothing_left()

    @pytest.mark.parametrize(
        ("age", "says"),
        [
            ("soon", "write a number of hours, days or weeks: 36h, 30d, 12w"),
            ("23h", "what ended less than a day ago is kept"),
            ("30", "'30' is no age"),
        ],
    )
    def test_an_age_that_is_none_or_too_young_is_refused(self, shell: Installation, age: str, says: str) -> None:
        shell.run("prune", "--older-than", age).refused(says)

    def test_without_the_queue_that_is_configured_nothing_is_deleted(self, shell: Installation) -> None:
        engine = engine_for(shell.settings.effective_database_url)
        ensure_tables(engine)
        with Session(engine) as session:
            session.add(
                Job(
                    id="old", workspace="a", assistant="a/b/c", status="succeeded", epoch=1, variables={},
                    job_metadata={}, enqueued_at=OLD, finished_at=OLD,
                )
            )  # fmt: skip
            session.commit()
        nowhere = f"unix://{shell.directory / 'nowhere'}"
        ended = shell.run("prune", "--older-than", "30d", env={"ASSISTQ_REDIS_URL": nowhere})
        ended.refused("Redis does not answer")
        assert rows_of(engine)["jobs"] == 1
        assert json.loads(shell.run("prune", "--older-than", "30d", "--json").out)["jobs"] == 1
        engine.dispose()
