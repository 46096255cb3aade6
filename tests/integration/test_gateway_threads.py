"""What owners write into threads while workers settle turns there, on SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine
from sqlmodel import Session, select

from producer import Producer
from producer.gateway.problem import Kind, Problem
from producer.gateway.thread_messages import ThreadMessages, message_id
from producer.gateway.threads import Threads
from schemas import JobRecord, Message
from schemas.chat import ToolCall
from schemas.tables import ThreadMessage
from tests.given import WORKSPACE, a_job, a_result, user
from worker.flow.history import unanswered_calls
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


@pytest.fixture
def messages(threads: Threads) -> ThreadMessages:
    return ThreadMessages(threads)


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
    store: SqlStore, threads: Threads, messages: ThreadMessages, engine: Engine
) -> None:
    thread_id = begun(threads)
    loop = asyncio.get_running_loop()

    def write(n: int) -> None:
        messages.append(WORKSPACE, thread_id, user(f"hand {n}"), metadata=None)

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
    store: SqlStore, threads: Threads, messages: ThreadMessages, engine: Engine
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


CALL = Message(role="assistant", tool_calls=(ToolCall(id="c1", name="look", arguments="{}"),))
ANSWER = Message(role="tool", content="42", tool_call_id="c1")


def ids_of(messages: ThreadMessages, thread_id: str) -> dict[str, str]:
    """Return the last message's id of each role."""
    rows = messages.page(WORKSPACE, thread_id, limit=100, after=None, newest_first=False).rows
    return {row.role: message_id(row) for row in rows}


async def roles(store: SqlStore, thread_id: str) -> list[str]:
    context = await store.context(JobRecord(id="next", job=a_job(thread_id=thread_id)))
    assert unanswered_calls(tuple(message for turn in context.history for message in turn)) <= {"open"}
    return [message.role for turn in context.history for message in turn]


async def test_a_call_that_an_owner_wrote_before_a_turn_that_never_saw_it_is_not_sent(
    store: SqlStore, threads: Threads, messages: ThreadMessages
) -> None:
    thread_id = begun(threads)
    messages.append(WORKSPACE, thread_id, CALL, metadata=None)
    await store.settle(a_turn("j", thread_id, *turn_of(1)))
    assert await roles(store, thread_id) == ["user", "assistant"]


async def test_an_answer_that_was_settled_after_its_call_was_deleted_is_not_sent_and_can_be_deleted(
    store: SqlStore, threads: Threads, messages: ThreadMessages
) -> None:
    thread_id = begun(threads)
    await store.settle(a_turn("asks", thread_id, user("?"), CALL))
    messages.delete(WORKSPACE, thread_id, ids_of(messages, thread_id)["assistant"])
    await store.settle(a_turn("answers", thread_id, ANSWER, Message(role="assistant", content="It is 42.")))
    assert await roles(store, thread_id) == ["user", "assistant"]
    messages.delete(WORKSPACE, thread_id, ids_of(messages, thread_id)["tool"])
    assert "tool" not in ids_of(messages, thread_id)


async def test_calls_at_the_end_stay_for_who_answers_them(
    store: SqlStore, threads: Threads, messages: ThreadMessages
) -> None:
    thread_id = begun(threads)
    open_call = ToolCall(id="open", name="look", arguments="{}")
    both = Message(role="assistant", tool_calls=(*CALL.tool_calls, open_call))
    await store.settle(a_turn("asks", thread_id, user("?"), both, ANSWER))
    assert await roles(store, thread_id) == ["user", "assistant", "tool"]
    messages.append(WORKSPACE, thread_id, ANSWER.model_copy(update={"tool_call_id": "open"}), metadata=None)
    await store.settle(a_turn("goes-on", thread_id, *turn_of(1)))
    assert await roles(store, thread_id) == ["user", "assistant", "tool", "tool", "user", "assistant"]
    with pytest.raises(Problem, match="answers the tool call"):
        messages.delete(WORKSPACE, thread_id, ids_of(messages, thread_id)["tool"])


async def test_calls_are_neither_written_nor_deleted_while_jobs_of_the_thread_have_not_ended(
    store: SqlStore, engine: Engine, producer: Producer
) -> None:
    messages = ThreadMessages(Threads(engine), has_jobs=producer.has_jobs)
    thread_id = begun(Threads(engine))
    await store.settle(a_turn("asks", thread_id, user("?"), CALL, ANSWER))
    producer.enqueue(a_job("j", thread_id=thread_id))
    calling = ids_of(messages, thread_id)["assistant"]
    for refused in (
        lambda: messages.append(WORKSPACE, thread_id, CALL, metadata=None),
        lambda: messages.delete(WORKSPACE, thread_id, calling),
    ):
        with pytest.raises(Problem, match="has a job that has not ended") as told:
            refused()
        assert told.value.kind is Kind.CONFLICT
    messages.append(WORKSPACE, thread_id, user("more"), metadata=None)
    messages.delete(WORKSPACE, thread_id, ids_of(messages, thread_id)["user"])
    assert await roles(store, thread_id) == ["user", "assistant", "tool"]


async def test_an_answer_that_is_added_while_its_call_is_deleted_goes_along(
    store: SqlStore, threads: Threads, messages: ThreadMessages, engine: Engine
) -> None:
    for n in range(WRITTEN):
        thread_id = begun(threads)
        messages.append(WORKSPACE, thread_id, CALL, metadata=None)
        calling = ids_of(messages, thread_id)["assistant"]
        with ThreadPoolExecutor(2) as pool:
            added = pool.submit(messages.append, WORKSPACE, thread_id, ANSWER, metadata=None)
            deleted = pool.submit(messages.delete, WORKSPACE, thread_id, calling)
        deleted.result()
        # It came first and went along, or it was refused.
        assert added.exception() is None or isinstance(added.exception(), Problem)
        assert ids_of(messages, thread_id) == {}, n
