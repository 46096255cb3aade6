"""When a gateway looks for batches that need work: at a word, at the end of a lease, and else seldom."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Literal

import pytest
from redis.asyncio import Redis
from sqlalchemy import Engine, event
from sqlmodel import Session

from producer import Producer
from producer.gateway.dialects.openai.batching import keeper as keepers
from producer.gateway.dialects.openai.batching.keeper import BatchKeeper, tell_of_batch
from producer.gateway.dialects.openai.batching.lease import LEASE
from producer.gateway.dialects.openai.batching.store import NewBatch, OpenAIBatches
from producer.gateway.switchboard import Switchboard
from schemas import names
from schemas.tables import OpenAIBatch
from tests.given import until

pytestmark = pytest.mark.anyio

NEVER_S = 3600.0


class News(asyncio.Event):
    """Says when the keeper waits for it: it has looked, and has nothing to do."""

    def __init__(self) -> None:
        super().__init__()
        self.is_waited_for = asyncio.Event()

    async def wait(self) -> Literal[True]:
        self.is_waited_for.set()
        try:
            return await super().wait()
        finally:
            self.is_waited_for.clear()


@asynccontextmanager
async def keeping(engine: Engine, producer: Producer, redis: Redis) -> AsyncIterator[asyncio.Event]:
    """Keep batches meanwhile; yields an event that is set while the keeper waits."""
    switchboard, news = Switchboard(redis), News()

    async def hear(word: asyncio.Event) -> None:
        while True:
            await word.wait()
            word.clear()
            news.set()

    async with switchboard.running(), switchboard.listening(names.BATCHES_CHANNEL) as word:
        hearing = asyncio.create_task(hear(word))
        async with BatchKeeper(engine, producer, redis, news=news).running():
            yield news.is_waited_for
        hearing.cancel()


@pytest.fixture
def looks(engine: Engine) -> list[None]:
    """Grows by one at each look for batches that are due."""
    made: list[None] = []

    @event.listens_for(engine, "before_cursor_execute")
    def _count(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if "LIMIT" in statement and "FROM openai_batches" in statement:
            made.append(None)

    return made


def made_of_no_file(engine: Engine) -> str:
    """Return a batch that whoever works on it ends at once as failed."""
    new = NewBatch("acme", None, "file-gone", "/v1/chat/completions", "24h")
    return OpenAIBatches(engine).create(new).id


async def has_failed(engine: Engine, batch_id: str) -> None:
    async def it_has() -> bool:
        return await asyncio.to_thread(status, engine, batch_id) == "failed"

    await until(it_has, within_s=60)


def status(engine: Engine, batch_id: str) -> str:
    with Session(engine) as session:
        found = session.get(OpenAIBatch, batch_id)
    assert found is not None
    return found.status


async def test_it_looks_at_a_word_and_at_the_end_of_a_lease_and_else_not(
    engine: Engine, producer: Producer, redis_client: Redis, looks: list[None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keepers, "LOOK_EVERY_S", NEVER_S)
    monkeypatch.setattr(keepers, "_BETWEEN_LOOKS_S", 0.0)
    async with keeping(engine, producer, redis_client) as waits:
        for _ in range(10):
            await waits.wait()
            told = made_of_no_file(engine)
            await tell_of_batch(redis_client, told)
            await has_failed(engine, told)
        await waits.wait()
        # Of a gateway that dies.
        left = made_of_no_file(engine)
        OpenAIBatches(engine).claim(left, now=datetime.now(UTC), lease=timedelta(seconds=0.5))
        await tell_of_batch(redis_client, left)
        await has_failed(engine, left)
    # At the start, at the subscription, at each word, at the end of the lease, and after each piece of work.
    assert len(looks) <= 2 + 11 + 1 + 11


async def test_a_word_that_was_lost_is_made_up_for_within_a_lease(
    engine: Engine, producer: Producer, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert LEASE.total_seconds() >= keepers.LOOK_EVERY_S
    monkeypatch.setattr(keepers, "LOOK_EVERY_S", 0.1)
    async with keeping(engine, producer, redis_client) as waits:
        await waits.wait()
        await has_failed(engine, made_of_no_file(engine))


def test_the_next_look_is_at_the_end_of_the_first_lease_under_which_there_is_work(engine: Engine) -> None:
    store, now = OpenAIBatches(engine), datetime.now(UTC)
    assert store.next_due(now) is None
    first, second = made_of_no_file(engine), made_of_no_file(engine)
    assert store.next_due(now) is None
    store.claim(second, now=now, lease=timedelta(seconds=9))
    store.claim(first, now=now, lease=timedelta(seconds=5))
    assert store.next_due(now) == now + timedelta(seconds=5)
    assert store.next_due(now + timedelta(seconds=5)) == now + timedelta(seconds=9)
    assert store.next_due(now + timedelta(seconds=9)) is None
