"""Keeps batches going for as long as the gateway runs: looks for those that need work, claims them, works on them.

It looks when there may be some: at a word on names.BATCHES_CHANNEL, when a lease ends, and when work of its own ends.
A word may be lost, so it looks each LOOK_EVERY_S anyway: as long as a lease, so that a gateway's death costs no more
for that. Who looks in a lease learns of its end, and who looks after it finds the batch free.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from producer.client import Producer
from producer.gateway.background import in_background
from producer.gateway.dialects.openai.batching.finish import Finish
from producer.gateway.dialects.openai.batching.intake import Intake
from producer.gateway.dialects.openai.batching.lease import LEASE, Lease, LeaseLostError, StoppingError
from producer.gateway.dialects.openai.batching.store import OpenAIBatches
from producer.gateway.files import Files
from producer.gateway.in_thread import InThreads
from schemas import names
from schemas.errors import AssistqError
from schemas.tables import OpenAIBatch

Found = TypeVar("Found")

_log = structlog.get_logger("assistq.gateway")

LOOK_EVERY_S = LEASE.total_seconds()
# However many words there are.
_BETWEEN_LOOKS_S = 0.5
# While the database does not answer.
_LOOK_AGAIN_S = 1.0
# How many batches a gateway works on at once, each in a thread of its own.
AT_ONCE = 4
# What is tried again comes back later each time, up to the second.
_AGAIN_AFTER_S, _AGAIN_AFTER_AT_MOST_S = 2.0, 300.0


class BatchKeeper:
    """The work on OpenAI's batches of one gateway."""

    def __init__(self, engine: Engine, producer: Producer, redis: Redis, *, news: asyncio.Event) -> None:
        """Work on this database and queue; `news` is set at each word on names.BATCHES_CHANNEL of this Redis."""
        files = Files(engine)
        self._engine = engine
        self._redis = redis
        self._news = news
        self._store = OpenAIBatches(engine)
        self._intake = Intake(engine, files, producer)
        self._finish = Finish(engine, files)
        # Not those of the routes: a large file takes minutes.
        self._threads = InThreads(AT_ONCE + 1)
        self._stopping = threading.Event()
        self._working: dict[str, asyncio.Task[None]] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Work meanwhile; what is under way at the end is left for the next gateway, or another one."""
        try:
            async with in_background(self._look_on):
                yield
        finally:
            self._stopping.set()
            if self._working:
                await asyncio.gather(*self._working.values())
                await tell_of_batch(self._redis, "")
            self._threads.close()

    async def _look_on(self) -> None:
        while True:
            self._news.clear()
            # First for what is to come: what becomes free in between is found, and not slept through.
            try:
                pause_s = await self._in_thread(self._until_next_s)
                await self._begin_what_is_due()
            except SQLAlchemyError as exc:
                _log.warning("batches_wait", error=type(exc).__name__)
                pause_s = _LOOK_AGAIN_S
            await asyncio.sleep(_BETWEEN_LOOKS_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._news.wait()

    async def _begin_what_is_due(self) -> None:
        free = AT_ONCE - len(self._working)
        if free <= 0:
            return
        for batch_id in await self._in_thread(lambda: self._store.due(datetime.now(UTC), limit=free)):
            # One that the look before found may not have been claimed yet.
            if batch_id not in self._working:
                self._working[batch_id] = asyncio.create_task(self._work(batch_id))

    def _until_next_s(self) -> float:
        now = datetime.now(UTC)
        due = self._store.next_due(now)
        return LOOK_EVERY_S if due is None else min((due - now).total_seconds(), LOOK_EVERY_S)

    async def _work(self, batch_id: str) -> None:
        try:
            await self._in_thread(lambda: self._claim_and_work(batch_id))
        except (SQLAlchemyError, AssistqError) as exc:
            _log.warning("batch_waits", batch_id=batch_id, error=str(exc))
        except Exception:  # noqa: BLE001 - others go on, and it is tried again
            _log.exception("batch_work_crashed", batch_id=batch_id)
        finally:
            del self._working[batch_id]
            self._news.set()

    def _claim_and_work(self, batch_id: str) -> None:
        batch = self._store.claim(batch_id, now=datetime.now(UTC), lease=LEASE)
        if batch is None:
            return
        lease = Lease(self._engine, batch, self._stopping)
        try:
            self._step(batch, lease)
        except LeaseLostError:
            _log.warning("batch_lease_lost", batch_id=batch_id)
        except StoppingError:
            lease.give_back()
        except BaseException:
            with suppress(SQLAlchemyError):
                lease.give_back(after=_pause(batch.claims))
            raise

    def _step(self, batch: OpenAIBatch, lease: Lease) -> None:
        if batch.enqueued_at is None:
            self._intake.take_in(batch, lease)
        else:
            self._finish.finish(batch, lease)

    async def _in_thread(self, function: Callable[[], Found]) -> Found:
        # Who stops looks no more when this is left: the database may be closed then.
        return await self._threads.to_its_end(function)


async def tell_of_batch(redis: Redis, batch_id: str) -> None:
    """Have all gateways look for batches that need work; where Redis is away, they look later."""
    with suppress(RedisError):
        await redis.publish(names.BATCHES_CHANNEL, batch_id)


def _pause(claims: int) -> timedelta:
    return timedelta(seconds=min(_AGAIN_AFTER_S * claims, _AGAIN_AFTER_AT_MOST_S))
