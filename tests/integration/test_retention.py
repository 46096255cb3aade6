"""What ended long ago is deleted from SQL step by step, and nothing that is still of use."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis
from sqlalchemy import Engine, func
from sqlmodel import Session, col, select

from producer.records import Records
from schemas import Status, names
from schemas.database import engine_for
from schemas.queue_in_use import QueueInUse
from schemas.retention import STEP_ROWS, Kind, Retention
from schemas.tables import Batch, Delivery, Job, OpenAIBatch, Thread, ThreadMessage

NOW = datetime.now(UTC)
OLD, YOUNG = NOW - timedelta(days=40), NOW - timedelta(days=10)
BEFORE = NOW - timedelta(days=30)
WORKSPACE = "acme"


@pytest.fixture
def queue(valkey_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(valkey_url) as client:
        yield client


def a_job(id: str, at: datetime, **fields: Any) -> Job:  # noqa: A002 - the column's name
    known: dict[str, Any] = {
        "workspace": WORKSPACE,
        "assistant": "acme/reviews/sentiment",
        "status": "succeeded",
        "epoch": 1,
        "variables": {},
        "job_metadata": {},
        "enqueued_at": at,
        "finished_at": at,
    }
    return Job(**{**known, "id": id, **fields})


def a_batch(id: str, at: datetime, *, jobs: int = 0, job_at: datetime | None = None, **fields: Any) -> list[Any]:  # noqa: A002
    numbers: dict[str, Any] = {
        "total": jobs,
        "counts": {"succeeded": jobs},
        "requests": 0,
        "prompt_tokens": 0,
        "completion_tokens": 0,
    }
    batch = Batch(id=id, workspace=WORKSPACE, state="completed", created_at=at, finished_at=at, **numbers, **fields)
    return [batch, *(a_job(f"{id}.{row}", job_at or at, batch_id=id, row=row) for row in range(jobs))]


def a_thread(id: str, *messages_at: datetime) -> list[Any]:  # noqa: A002
    rows = [
        ThreadMessage(
            workspace=WORKSPACE,
            thread_id=id,
            position=position,
            job_id=f"{id}-{position // 2}",
            role="user",
            content="x",
            message={"role": "user"},
            created_at=at,
        )
        for position, at in enumerate(messages_at)
    ]
    created_at = min(messages_at, default=OLD)
    return [Thread(workspace=WORKSPACE, id=id, provider_refs={}, created_at=created_at), *rows]


def a_delivery(id: str, state: str, at: datetime, **fields: Any) -> Delivery:  # noqa: A002
    return Delivery(
        id=id,
        workspace=WORKSPACE,
        event_type="batch.completed",
        url="https://example.com",
        body="{}",
        state=state,
        next_attempt_at=at,
        created_at=at,
        **fields,
    )


def put(engine: Engine, *rows: Any) -> None:
    with Session(engine) as session:
        for row in rows:
            session.add_all(row if isinstance(row, list) else [row])
        session.commit()


def ids(engine: Engine, table: Any) -> list[str]:
    with Session(engine) as session:
        return sorted(session.exec(select(table.id)))


def pruned(engine: Engine, queue: redis.Redis | None = None, *, dry_run: bool = False) -> Counter[Kind]:
    retention = Retention(engine, QueueInUse(queue), before=BEFORE, dry_run=dry_run)
    return sum(retention.steps(), Counter[Kind]())


def test_what_ended_before_goes_and_what_ended_since_stays(engine: Engine, queue: redis.Redis) -> None:
    put(
        engine,
        a_batch("old", OLD, jobs=3),
        # A batch goes as a whole, when all of it is old.
        a_batch("long", YOUNG, jobs=2, job_at=OLD),
        a_job("single-old", OLD),
        a_job("single-young", YOUNG),
        # Of a batch that has not ended: no row of it is there.
        a_job("running.0", OLD, batch_id="running", row=0),
        a_thread("silent", OLD, OLD),
        a_thread("empty"),
        a_thread("alive", OLD, OLD, YOUNG, YOUNG),
        a_delivery("delivered", "delivered", OLD),
        a_delivery("given-up", "failed", OLD),
        a_delivery("young", "delivered", YOUNG),
        a_delivery("pending", "pending", OLD),
    )
    counts = {Kind.JOBS: 4, Kind.BATCHES: 1, Kind.THREADS: 2, Kind.MESSAGES: 2, Kind.DELIVERIES: 2}
    assert pruned(engine, queue, dry_run=True) == counts
    assert len(ids(engine, Job)) == 8
    assert pruned(engine, queue) == counts
    assert ids(engine, Job) == ["long.0", "long.1", "running.0", "single-young"]
    assert ids(engine, Batch) == ["long"]
    assert ids(engine, Thread) == ["alive"]
    assert len(ids(engine, ThreadMessage)) == 4
    assert ids(engine, Delivery) == ["pending", "young"]
    assert pruned(engine, queue) == Counter()


def test_messages_that_were_deleted_long_ago_go_before_the_rest_of_their_thread(engine: Engine) -> None:
    thread, *messages = a_thread("alive", OLD, OLD, OLD, YOUNG)
    messages[1].deleted_at, messages[2].deleted_at = OLD, YOUNG
    gone, *its = a_thread("gone", OLD, OLD)
    gone.deleted_at = its[0].deleted_at = its[1].deleted_at = OLD
    put(engine, [thread, *messages], [gone, *its])
    counts = {Kind.THREADS: 1, Kind.MESSAGES: 3}
    assert pruned(engine, dry_run=True) == counts
    assert pruned(engine) == counts
    assert ids(engine, Thread) == ["alive"]
    assert len(ids(engine, ThreadMessage)) == 3


def test_what_the_queue_still_holds_stays(engine: Engine, queue: redis.Redis) -> None:
    put(engine, a_job("settled", OLD), a_job("ended", OLD), a_thread("waits", OLD), a_thread("silent", OLD))
    # Its worker was lost between SQL and Redis: without the row the next one would run it again.
    queue.hset(names.job("settled"), "state", "running")
    queue.rpush(names.thread(WORKSPACE, "waits"), "a-job")
    assert pruned(engine, queue) == {Kind.JOBS: 1, Kind.THREADS: 1, Kind.MESSAGES: 1}
    assert ids(engine, Job) == ["settled"]
    assert ids(engine, Thread) == ["waits"]


def test_a_thread_that_gets_a_job_while_it_is_deleted_is_whole(engine: Engine) -> None:
    put(engine, a_thread("wakes", OLD, OLD), a_thread("silent", OLD))

    class WakesUp(QueueInUse):
        looks = 0

        def threads(self, threads: Any) -> Any:
            self.looks += 1
            return {(WORKSPACE, "wakes")} if self.looks > 1 else set()

    steps = list(Retention(engine, WakesUp(None), before=BEFORE).steps())
    assert sum(steps, Counter[Kind]()) == Counter()
    assert ids(engine, Thread) == ["silent", "wakes"]
    assert len(ids(engine, ThreadMessage)) == 3


def test_a_batch_and_those_that_ran_it_anew_go_together_or_not_at_all(engine: Engine, queue: redis.Redis) -> None:
    later = OLD + timedelta(hours=1)
    put(
        engine,
        a_batch("first", OLD, jobs=1),
        # What succeeded here, the last one did not run.
        a_batch("first_retry1", later, jobs=1, retry_of="first"),
        a_batch("first_retry2", YOUNG, jobs=1, retry_of="first"),
        a_batch("retried-now", OLD, jobs=1),
        a_batch("retried-now_retry1", later, jobs=1, retry_of="retried-now"),
        a_batch("a", OLD, jobs=1),
        a_batch("a_retry1", later, jobs=1, retry_of="a"),
        a_batch("a_retry2", later, jobs=1, retry_of="a"),
    )
    queue.zadd(names.BATCHES, {"retried-now_retry2": 1})
    queue.hset(names.batch("retried-now_retry2"), "retry_of", "retried-now")
    counts = {Kind.BATCHES: 3, Kind.JOBS: 3}
    assert pruned(engine, queue, dry_run=True) == counts
    assert pruned(engine, queue) == counts
    left = ["first", "first_retry1", "first_retry2", "retried-now", "retried-now_retry1"]
    assert ids(engine, Batch) == left
    assert ids(engine, Job) == [f"{batch_id}.0" for batch_id in left]


def test_what_a_delivery_tells_of_stays_as_long_as_the_delivery(engine: Engine) -> None:
    """Else the id is free again, and its next end would find the delivery of the one before."""
    put(engine, a_batch("r", OLD, jobs=1), a_batch("r_retry1", OLD, jobs=1, retry_of="r"))
    for state, at in (("delivered", OLD), ("pending", OLD), ("failed", YOUNG)):
        put(
            engine,
            a_job(f"j-{state}", OLD),
            a_delivery(f"of-j-{state}", state, at, job_id=f"j-{state}"),
            a_batch(f"b-{state}", OLD, jobs=1),
            a_delivery(f"of-b-{state}", state, at, batch_id=f"b-{state}"),
            # Of a job of a batch.
            a_batch(f"c-{state}", OLD, jobs=1),
            a_delivery(f"of-c-{state}", state, at, batch_id=f"c-{state}", job_id=f"c-{state}.0"),
        )
    put(engine, a_delivery("of-r", "pending", OLD, batch_id="r_retry1"))
    counts = {Kind.DELIVERIES: 3, Kind.BATCHES: 2, Kind.JOBS: 3}
    assert pruned(engine, dry_run=True) == counts
    retention = Retention(engine, QueueInUse(None), before=BEFORE)
    total: Counter[Kind] = Counter()
    for step in retention.steps():
        total += step
        with Session(engine) as session:
            for delivery in session.exec(select(Delivery)):
                if delivery.batch_id is not None:
                    assert session.get(Batch, delivery.batch_id) is not None
                if delivery.job_id is not None:
                    assert session.get(Job, delivery.job_id) is not None
    assert total == counts
    assert ids(engine, Batch) == ["b-failed", "b-pending", "c-failed", "c-pending", "r", "r_retry1"]
    with Session(engine) as session:
        for delivery in session.exec(select(Delivery)):
            delivery.state = "delivered"
            delivery.next_attempt_at = OLD
        session.commit()
    pruned(engine)
    assert [*ids(engine, Job), *ids(engine, Batch), *ids(engine, Delivery)] == []


def test_a_family_that_is_deleted_in_part_shows_no_end_that_did_not_stand(engine: Engine) -> None:
    put(engine, a_batch("b", OLD, jobs=2), a_batch("b_retry1", OLD + timedelta(hours=1), jobs=1, retry_of="b"))
    with Session(engine) as session:
        session.get_one(Job, "b.0").status = "failed"
        session.commit()
    records = Records(engine)
    for _ in Retention(engine, QueueInUse(None), before=BEFORE).steps():
        assert {result.status for result in records.results("b")} <= {Status.SUCCEEDED}
    assert ids(engine, Batch) == []


def test_no_transaction_deletes_many_rows_and_the_batch_goes_last(engine: Engine) -> None:
    jobs = 2 * STEP_ROWS + 1
    put(engine, a_batch("large", OLD, jobs=jobs), *(a_thread(f"t{number}", *[OLD] * 30) for number in range(40)))
    seen: Counter[Kind] = Counter()
    for step in Retention(engine, QueueInUse(None), before=BEFORE).steps():
        assert step.total() <= STEP_ROWS
        seen += step
        if seen[Kind.JOBS] < jobs:
            assert ids(engine, Batch) == ["large"]
    assert seen == {Kind.JOBS: jobs, Kind.BATCHES: 1, Kind.THREADS: 40, Kind.MESSAGES: 1200}


def test_a_round_that_stopped_anywhere_is_finished_by_the_next_and_two_at_once_do_no_harm(engine: Engine) -> None:
    put(engine, a_batch("large", OLD, jobs=STEP_ROWS + 1), a_thread("t", OLD), a_delivery("d", "delivered", OLD))
    for step in Retention(engine, QueueInUse(None), before=BEFORE).steps():
        if step[Kind.JOBS]:
            break
    assert len(ids(engine, Job)) == 1
    rounds = [threading.Thread(target=pruned, args=(engine,)) for _ in range(3)]
    for each in rounds:
        each.start()
    for each in rounds:
        each.join()
    for table in (Job, Batch, Thread, ThreadMessage, Delivery):
        assert ids(engine, table) == []


def test_others_write_between_the_steps(engine: Engine, database_url: str) -> None:
    put(engine, *(a_job(f"old-{number}", OLD) for number in range(3 * STEP_ROWS)))
    other = engine_for(database_url)
    written = 0
    for _ in Retention(engine, QueueInUse(None), before=BEFORE).steps():
        # Would wait for ever if a step held its lock on.
        put(other, a_job(f"new-{written}", NOW))
        written += 1
    assert written == 3
    with Session(other) as session:
        assert session.exec(select(func.count()).select_from(Job).where(col(Job.finished_at) == NOW)).one() == written
    other.dispose()


def test_a_batch_over_openais_api_goes_with_its_rows_once_its_files_were_written_long_ago(engine: Engine) -> None:
    def openais(id: str, ended_at: datetime | None) -> OpenAIBatch:  # noqa: A002
        return OpenAIBatch(
            id=id,
            workspace=WORKSPACE,
            input_file_id="f",
            endpoint="/v1/chat/completions",
            completion_window="24h",
            status="completed",
            created_at=OLD,
            expires_at=OLD,
            ended_at=ended_at,
        )

    put(engine, *a_batch("written", OLD, jobs=2), openais("written", OLD))
    put(engine, *a_batch("written late", OLD, jobs=2), openais("written late", YOUNG))
    put(engine, *a_batch("unwritten", OLD, jobs=2), openais("unwritten", None))
    put(engine, openais("failed", OLD), openais("failed late", YOUNG), openais("in progress", None))
    put(engine, openais("told", OLD), a_delivery("told", "pending", OLD, batch_id="told"))
    assert pruned(engine, dry_run=True) == pruned(engine)
    assert ids(engine, Batch) == ["unwritten", "written late"]
    assert len(ids(engine, Job)) == 4
    assert ids(engine, OpenAIBatch) == ["failed late", "in progress", "told", "unwritten", "written late"]
