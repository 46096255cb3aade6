"""Running anew what did not succeed, and results over all runs: a real Valkey, SQLite and PostgreSQL, no workers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta

import pytest
from redis.asyncio import Redis
from sqlalchemy import Engine
from sqlmodel import Session

from producer import Producer
from producer.entries import RejectedRow
from producer.records import Records
from producer.retry import retry
from schemas import InputError, InvokeJob, JobRecord, Rejection, Status, names
from schemas.batch import BatchStatus, end_state
from schemas.database import engine_for, ensure_tables
from schemas.money import NANOS
from schemas.outcome import Code
from schemas.tables import Batch, Job
from tests.given import NOW, a_job, a_result, released, state
from worker.queue.queue import Hint, JobQueue
from worker.store.base import Settlement
from worker.store.sql import SqlStore

pytestmark = pytest.mark.anyio

HOOK = "https://example.org/hook"
Ends = Callable[[JobRecord], Status]


class Works:
    """The queue, the database, and a worker that ends jobs as the test says."""

    def __init__(self, redis: Redis, producer: Producer, engine: Engine) -> None:
        self.redis = redis
        self.producer = producer
        self.engine = engine
        self.records = Records(engine)
        self.jobs = JobQueue(redis)
        self.store = SqlStore(engine)

    async def work(self, ends: Ends, *, batches_end: bool = True) -> list[JobRecord]:
        """Run all that waits to its end, and end the batches; return the jobs that were run."""
        ran: list[JobRecord] = []
        while hints := await released(self.jobs, capacity=10_000):
            ran += await asyncio.gather(*(self._run(hint, ends) for hint in hints))
        for batch_id, fields in (await self.jobs.ending_batches()).items() if batches_end else ():
            status = BatchStatus.from_fields(batch_id, {**fields, "state": end_state(fields)})
            await self.store.end_batch(status)
            await self.jobs.end_batch(batch_id, state=status.state.value)
        return ran

    async def _run(self, hint: Hint, ends: Ends) -> JobRecord:
        held = await self.jobs.claim(hint)
        assert held is not None
        result = a_result(held.record, status=ends(held.record), output=held.record.batch_id)
        await self.store.settle(Settlement(held.record, held.epoch, held.enqueued_ms, result, ()))
        await self.jobs.finish(held, result)
        return held.record

    def results(self, batch_id: str) -> list[tuple[str, Status]]:
        """Return job id and status of each row of the batch's results."""
        return [(result.job_id, result.status) for result in self.records.results(batch_id)]


@pytest.fixture
async def works(redis_client: Redis, producer: Producer, database_url: str) -> AsyncIterator[Works]:
    engine = engine_for(database_url)
    ensure_tables(engine)
    works = Works(redis_client, producer, engine)
    yield works
    works.store.close()


def all_end_as(status: Status) -> Ends:
    return lambda _record: status


def rows_fail(*rows: int) -> Ends:
    return lambda record: Status.FAILED if record.row in rows else Status.SUCCEEDED


async def test_what_did_not_succeed_is_run_anew_as_it_was_asked_for_under_its_row(works: Works) -> None:
    jobs: list[InvokeJob | RejectedRow] = [
        a_job("named", custom_id="zero"),
        a_job(),
        a_job("mine", custom_id="two", thread_id="t", metadata={"k": 1}, priority="interactive", max_tokens=5),
        RejectedRow(job=a_job(), rejection=Rejection(code=Code.BAD_ROW, error="it is bad")),
        a_job(do_not_record=True),
        a_job(),
    ]
    works.producer.enqueue_many(jobs, batch_id="b", webhook=HOOK, label="rows.csv")
    await works.work(lambda record: Status.SUCCEEDED if record.row == 1 else Status.EXPIRED)
    retried = retry(works.producer, works.records, "b")
    assert retried.batch is not None
    assert (retried.root, retried.batch.id, retried.rows, retried.left_out) == ("b", "b_retry1", 3, 2)
    told = retried.batch.status()
    assert told is not None
    assert (told.total, told.retry_of, told.webhook, told.label) == (3, "b", HOOK, "rows.csv")
    ran = sorted(await works.work(all_end_as(Status.SUCCEEDED)), key=lambda record: record.row or 0)
    assert [(record.id, record.row) for record in ran] == [("b_retry1.0", 0), ("b_retry1.2", 2), ("b_retry1.5", 5)]
    asked = [job for row, job in enumerate(jobs) if row in {0, 2, 5} and isinstance(job, InvokeJob)]
    assert [record.job for record in ran] == [job.model_copy(update={"id": None}) for job in asked]
    (ended,) = works.records.retries_of("b")
    assert (ended.batch_id, ended.counts) == ("b_retry1", {Status.SUCCEEDED: 3})


async def test_results_have_each_rows_last_run_and_a_retrys_its_own(works: Works) -> None:
    works.producer.enqueue_many([a_job() for _ in range(5)], batch_id="b")
    await works.work(rows_fail(1, 2, 4))
    retry(works.producer, works.records, "b")
    await works.work(rows_fail(2, 4))
    # A retry is known by any id of the chain.
    assert retry(works.producer, works.records, "b_retry1").root == "b"
    await works.work(lambda record: Status.CANCELLED if record.row == 2 else Status.SUCCEEDED)
    good = Status.SUCCEEDED
    assert works.results("b") == [
        ("b.0", good),
        ("b_retry1.1", good),
        ("b_retry2.2", Status.CANCELLED),
        ("b.3", good),
        ("b_retry2.4", good),
    ]
    assert works.results("b_retry1") == [
        ("b_retry1.1", good),
        ("b_retry1.2", Status.FAILED),
        ("b_retry1.4", Status.FAILED),
    ]
    third = retry(works.producer, works.records, "b")
    assert third.batch is not None
    assert (third.batch.id, third.rows) == ("b_retry3", 1)
    # While it runs, what it has done already counts.
    await works.work(all_end_as(good), batches_end=False)
    assert works.results("b")[2] == ("b_retry3.2", good)
    await works.work(all_end_as(good))
    nothing = retry(works.producer, works.records, "b_retry3")
    assert (nothing.root, nothing.batch, nothing.rows, nothing.left_out) == ("b", None, 0, 0)
    assert not await works.redis.exists(names.batch("b_retry4"))


async def test_nothing_is_run_anew_while_the_batch_or_its_last_retry_has_not_ended(works: Works) -> None:
    with pytest.raises(InputError, match="batch 'b' is not known"):
        retry(works.producer, works.records, "b")
    works.producer.enqueue_many([a_job(), a_job()], batch_id="b")
    with pytest.raises(InputError, match="batch 'b' has not ended"):
        retry(works.producer, works.records, "b")
    await works.work(rows_fail(0, 1))
    retry(works.producer, works.records, "b")
    for name in ("b", "b_retry1"):
        with pytest.raises(InputError, match="batch 'b_retry1' has not ended"):
            retry(works.producer, works.records, name)
    works.producer.enqueue_many([a_job()], batch_id="other_retry1")
    works.producer.enqueue_many([a_job()], batch_id="other")
    await works.work(all_end_as(Status.FAILED))
    with pytest.raises(InputError, match="'other_retry1' exists already, which is no retry of other"):
        retry(works.producer, works.records, "other")


async def test_a_retry_is_numbered_after_the_last_one_even_if_earlier_ones_are_gone(works: Works) -> None:
    def is_forgotten(batch_id: str) -> None:
        with Session(works.engine) as session:
            session.delete(session.get_one(Batch, batch_id))
            session.commit()

    works.producer.enqueue_many([a_job()], batch_id="b")
    await works.work(all_end_as(Status.FAILED))
    for number in (1, 2):
        retried = retry(works.producer, works.records, "b")
        assert retried.batch is not None
        assert retried.batch.id == f"b_retry{number}"
        await works.work(all_end_as(Status.FAILED))
    is_forgotten("b_retry1")
    third = retry(works.producer, works.records, "b")
    assert third.batch is not None
    assert third.batch.id == "b_retry3"
    with pytest.raises(InputError, match="batch 'b_retry3' has not ended"):
        retry(works.producer, works.records, "b")
    # What the one that runs has done counts, whatever its number.
    await works.work(all_end_as(Status.FAILED), batches_end=False)
    assert works.results("b") == [("b_retry3.0", Status.FAILED)]
    await works.work(all_end_as(Status.FAILED))
    # The queue still remembers the last one, which has ended.
    is_forgotten("b_retry3")
    fourth = retry(works.producer, works.records, "b")
    assert fourth.batch is not None
    assert (fourth.batch.id, fourth.rows) == ("b_retry4", 1)
    (again,) = await works.work(all_end_as(Status.SUCCEEDED))
    assert again.id == "b_retry4.0"


async def test_the_retry_of_a_batch_that_had_a_cap_needs_one_of_its_own(works: Works) -> None:
    works.producer.enqueue_many([a_job()] * 2, batch_id="b", spend_cap=0.5)
    await works.work(all_end_as(Status.OVER_BUDGET))
    with pytest.raises(InputError, match=r"had a spend cap of 0\.50.*--spend-cap"):
        retry(works.producer, works.records, "b")
    soon = datetime.now(UTC) + timedelta(hours=1)
    retried = retry(works.producer, works.records, "b", spend_cap=2, expires_at=soon)
    assert retried.batch is not None
    told = retried.batch.status()
    assert told is not None
    assert (told.spend_cap_nano, told.expires_ms) == (2 * NANOS, int(soon.timestamp() * 1000))


async def test_a_retry_that_was_interrupted_goes_on_and_doubles_nothing(works: Works) -> None:
    rows = 1200
    works.producer.enqueue_many([a_job() for _ in range(rows)], batch_id="b")
    await works.work(all_end_as(Status.FAILED))
    with Session(works.engine) as session:
        # A row that cannot be read ends the retry in its midst.
        broken = session.get_one(Job, "b.1100")
        request, broken.request = broken.request, 5
        session.commit()
    with pytest.raises(TypeError):
        retry(works.producer, works.records, "b")
    assert (await works.redis.hget(names.batch("b_retry1"), "total")) is None
    begun = await works.work(all_end_as(Status.SUCCEEDED))
    assert 0 < len(begun) < rows
    with Session(works.engine) as session:
        session.get_one(Job, "b.1100").request = request
        session.commit()
    again = retry(works.producer, works.records, "b")
    assert again.batch is not None
    assert (again.batch.id, again.rows) == ("b_retry1", rows)
    rest = await works.work(all_end_as(Status.SUCCEEDED))
    assert sorted(record.row or 0 for record in [*begun, *rest]) == list(range(rows))
    (ended,) = works.records.retries_of("b")
    assert (ended.total, ended.counts) == (rows, {Status.SUCCEEDED: rows})
    assert works.results("b") == [(f"b_retry1.{row}", Status.SUCCEEDED) for row in range(rows)]


async def test_a_job_whose_row_nobody_knows_keeps_its_place_in_the_results(works: Works) -> None:
    works.producer.enqueue_many([a_job(), a_job()], batch_id="b")
    await works.work(rows_fail(1))
    assert (await state(works.redis, "b.1")) == {}
    with Session(works.engine) as session:
        for number in range(2):
            session.add(_without_row(f"lost{number}"))
        session.commit()
    assert [job_id for job_id, _ in works.results("b")] == ["b.0", "b.1", "lost0", "lost1"]
    assert retry(works.producer, works.records, "b").left_out == 2


def _without_row(job_id: str) -> Job:
    return Job(
        id=job_id,
        batch_id="b",
        workspace="acme",
        assistant="acme/p/a",
        status=Status.FAILED.value,
        epoch=1,
        variables={},
        job_metadata={},
        enqueued_at=NOW,
        finished_at=NOW,
    )
