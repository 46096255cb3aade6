"""What owners write into threads while workers settle turns there, on SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine
from sqlmodel import Session, select

from producer.gateway.problem import Problem
from producer.gateway.threads import Threads
from schemas import JobRecord, Message
from schemas.tables import ThreadMessage
from tests.given import WORKSPACE, a_job, a_result, user
from worker.store.base import JobContext, Settlement
from worker.store.sql import SqlStore

pytestmark = pytest.mark.anyio
WRITTEN = 30


@pytest.fixture
def store(engine: Engine) -> Iterator[SqlStore]:
    store = SqlStore(engine)
    yield store
    store.close()


@pytest.fixture
def threads(engine: Engine) -> Threads:
    return Threads(engine)


def a_turn(job_id: str, thread_id: str, *said: Message, at: datetime | None = None) -> Settlement:
    record = JobRecord(id=job_id, job=a_job(thread_id=thread_id))
    enqueued_ms = int((at or datetime.now(UTC)).timestamp() * 1000)
    result = a_result(record, thread_id=thread_id)
    return Settlement(record=record, epoch=1, enqueued_ms=enqueued_ms, result=result, new_messages=said)


def turn_of(n: int) -> tuple[Message, Message]:
    return user(f"job {n}"), Message(role="assistant", content=f"answer {n}")


def begun(threads: Threads) -> str:
    return threads.create(WORKSPACE, metadata=None, create_log=None).id


async def history(store: SqlStore, thread_id: str) -> list[list[str]]:
    context: JobContext = await store.context(JobRecord(id="next", job=a_job(thread_id=thread_id)))
    return [[message.text for message in turn] for turn in context.history]


async def test_what_is_written_while_turns_are_settled_is_kept_and_turns_stay_whole(
    store: SqlStore, threads: Threads, engine: Engine
) -> None:
    thread_id = begun(threads)
    loop = asyncio.get_running_loop()

    def write(n: int) -> None:
        threads.append(WORKSPACE, thread_id, user(f"hand {n}"), metadata=None)

    with ThreadPoolExecutor(4) as pool:
        written = [loop.run_in_executor(pool, write, n) for n in range(WRITTEN)]
        for n in range(WRITTEN):
            await store.settle(a_turn(f"j{n}", thread_id, *turn_of(n)))
        await asyncio.gather(*written)
    with Session(engine) as session:
        rows = session.exec(select(ThreadMessage).order_by(ThreadMessage.position)).all()  # type: ignore[arg-type]
    assert [row.position for row in rows] == list(range(3 * WRITTEN))
    turns = await history(store, thread_id)
    # What its owner writes is of no turn: each message for itself.
    assert sorted(turns) == sorted(
        [[f"hand {n}"] for n in range(WRITTEN)] + [[f"job {n}", f"answer {n}"] for n in range(WRITTEN)]
    )


async def test_a_deleted_thread_takes_no_turn_of_before_and_begins_anew_with_one_of_after(
    store: SqlStore, threads: Threads
) -> None:
    thread_id = begun(threads)
    before = datetime.now(UTC) - timedelta(seconds=5)
    await store.settle(a_turn("old", thread_id, user("old"), at=before))
    threads.delete(WORKSPACE, thread_id)
    assert await history(store, thread_id) == []
    result = await store.settle(a_turn("late", thread_id, user("late"), at=before))
    assert result.succeeded
    with pytest.raises(Problem, match="there is no thread"):
        threads.thread(WORKSPACE, thread_id)

    after = datetime.now(UTC) + timedelta(seconds=5)
    await store.settle(a_turn("new", thread_id, user("new"), at=after))
    assert await history(store, thread_id) == [["new"]]
    assert threads.thread(WORKSPACE, thread_id).deleted_at is None


async def test_what_was_left_in_a_thread_while_it_was_deleted_does_not_come_back(
    store: SqlStore, threads: Threads, engine: Engine
) -> None:
    thread_id = begun(threads)
    threads.delete(WORKSPACE, thread_id)
    # As by a worker whose transaction began before the delete and ended after it.
    with Session(engine) as session:
        message = user("left").model_dump(mode="json", exclude_defaults=True)
        left = ThreadMessage(
            workspace=WORKSPACE,
            thread_id=thread_id,
            position=0,
            job_id="j",
            role="user",
            content="left",
            message=message,
            created_at=datetime.now(UTC),
        )
        session.add(left)
        session.commit()
    assert await history(store, thread_id) == []
    after = datetime.now(UTC) + timedelta(seconds=5)
    await store.settle(a_turn("new", thread_id, user("new"), at=after))
    assert await history(store, thread_id) == [["new"]]
