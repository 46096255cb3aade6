"""What the routes use: one of each, opened when the gateway starts and closed when it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import cast

import anyio
from fastapi import Request
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import RedisError
from sqlalchemy import Engine, text
from sqlalchemy.exc import SQLAlchemyError

from producer.assistants import Assistants
from producer.client import Producer
from producer.gateway.calls import Calls
from producer.gateway.checked_keys import CheckedKeys
from producer.gateway.files import Files
from producer.gateway.in_thread import Found, Given, InThreads
from producer.gateway.keys import ApiKeys
from producer.gateway.obstacles import Obstacles
from producer.gateway.request_limit import RequestLimit
from producer.gateway.switchboard import Switchboard
from producer.gateway.waiters import Waiters
from producer.records import Records
from schemas import names
from schemas.database import engine_for, ensure_tables
from schemas.settings import Settings

# As many as the engine has connections.
_THREADS = 20
# An enqueue waits for the disk of the queue, up to a second, and holds no connection of the engine.
_ENQUEUES_AT_ONCE = 128
# Each reads a whole file and keeps a core busy.
_SUBMISSIONS_AT_ONCE = 4
ANSWERS_WITHIN_S = 2.0
# Who finds none free waits for one: each is held for a round trip.
_REDIS_CONNECTIONS = 64
_CONNECTION_WITHIN_S = 30.0


@dataclass(frozen=True, slots=True)
class Parts:
    """What the routes use. `producer` and SQL are for threads (`in_thread`), `redis` and `calls` for the loop.

    `enqueued` is for what waits for the queue's disk, so that it keeps nobody from reading SQL, and `submitted` for
    what takes a whole file.
    """

    settings: Settings
    engine: Engine
    redis: Redis
    producer: Producer
    keys: ApiKeys
    checked_keys: CheckedKeys
    request_limit: RequestLimit
    assistants: Assistants
    records: Records
    files: Files
    switchboard: Switchboard
    calls: Calls
    in_thread: InThreads
    enqueued: InThreads
    submitted: InThreads

    async def queue_answers(self) -> bool:
        """Return whether the queue answers within ANSWERS_WITHIN_S."""
        try:
            async with asyncio.timeout(ANSWERS_WITHIN_S):
                return bool(await self.redis.ping())
        except (RedisError, TimeoutError):
            return False

    async def database_answers(self) -> bool:
        """Return whether the database answers within ANSWERS_WITHIN_S."""
        try:
            async with asyncio.timeout(ANSWERS_WITHIN_S):
                await self.in_thread(self._ask_database)
        except (SQLAlchemyError, TimeoutError):
            return False
        return True

    def _ask_database(self) -> None:
        with self.engine.connect() as connection:
            connection.execute(text("SELECT 1"))

    async def in_thread_to_its_end(
        self, function: Callable[Given, Found], *args: Given.args, **kwargs: Given.kwargs
    ) -> Found:
        """Do as `in_thread` does; who is cancelled first waits for it."""
        return await self.in_thread.to_its_end(function, *args, **kwargs)


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Parts]:
    """Yield the parts, connected; AssistqError if the queue or the database is not there."""
    engine = engine_for(settings.effective_database_url)
    await anyio.to_thread.run_sync(ensure_tables, engine)
    producer = await anyio.to_thread.run_sync(Producer.from_settings, settings)
    pool = BlockingConnectionPool.from_url(
        settings.effective_redis_url,
        max_connections=_REDIS_CONNECTIONS,
        timeout=_CONNECTION_WITHIN_S,
        socket_timeout=30,
        retry=Retry(ExponentialBackoff(cap=1.0, base=0.05), 5),
    )
    redis = Redis.from_pool(pool)
    switchboard, obstacles, waiters = Switchboard(redis), Obstacles(redis), Waiters(redis)
    calls = Calls(redis, switchboard, obstacles, waiters, timeout_s=settings.http_timeout_s)
    keys = ApiKeys(engine)
    in_thread, enqueued = InThreads(_THREADS), InThreads(_ENQUEUES_AT_ONCE)
    submitted = InThreads(_SUBMISSIONS_AT_ONCE)
    try:
        async with (
            switchboard.running(),
            obstacles.running(),
            waiters.running(),
            switchboard.listening(names.KEYS_CHANNEL) as keys_changed,
        ):
            yield Parts(
                settings=settings,
                engine=engine,
                redis=redis,
                producer=producer,
                keys=keys,
                checked_keys=CheckedKeys(keys, redis, changed=keys_changed),
                request_limit=RequestLimit(redis),
                assistants=Assistants(engine),
                records=Records(engine),
                files=Files(engine),
                switchboard=switchboard,
                calls=calls,
                in_thread=in_thread,
                enqueued=enqueued,
                submitted=submitted,
            )
    finally:
        await waiters.aclose()
        for threads in (in_thread, enqueued, submitted):
            threads.close()
        await redis.aclose()
        producer.close()
        engine.dispose()


def parts_of(request: Request) -> Parts:
    """Return the parts of the application that got this request."""
    return cast("Parts", request.app.state.parts)
