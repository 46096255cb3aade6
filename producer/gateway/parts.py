"""What the routes use: one of each, opened when the gateway starts and closed when it ends."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import ParamSpec, TypeVar, cast

import anyio
from anyio import CapacityLimiter
from fastapi import Request
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from sqlalchemy import Engine

from producer.assistants import Assistants
from producer.client import Producer
from producer.gateway.calls import Calls
from producer.gateway.checked_keys import CheckedKeys
from producer.gateway.keys import ApiKeys
from producer.gateway.request_limit import RequestLimit
from producer.gateway.switchboard import Switchboard
from producer.records import Records
from schemas import names
from schemas.database import engine_for, ensure_tables
from schemas.settings import Settings

Given = ParamSpec("Given")
Found = TypeVar("Found")

# As many as the engine has connections.
_THREADS = 20
_REDIS_CONNECTIONS = 256


@dataclass(frozen=True, slots=True)
class Parts:
    """What the routes use. `producer` and SQL are for threads (`in_thread`), `redis` and `calls` for the loop."""

    settings: Settings
    engine: Engine
    redis: Redis
    producer: Producer
    keys: ApiKeys
    checked_keys: CheckedKeys
    request_limit: RequestLimit
    assistants: Assistants
    records: Records
    switchboard: Switchboard
    calls: Calls
    threads: CapacityLimiter

    async def in_thread(self, function: Callable[Given, Found], *args: Given.args, **kwargs: Given.kwargs) -> Found:
        """Run what would hold the event loop up in a thread."""
        return await anyio.to_thread.run_sync(lambda: function(*args, **kwargs), limiter=self.threads)


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Parts]:
    """Yield the parts, connected; AssistqError if the queue or the database is not there."""
    engine = engine_for(settings.effective_database_url)
    await anyio.to_thread.run_sync(ensure_tables, engine)
    producer = await anyio.to_thread.run_sync(Producer.from_settings, settings)
    redis = Redis.from_url(
        settings.effective_redis_url,
        max_connections=_REDIS_CONNECTIONS,
        socket_timeout=30,
        retry=Retry(ExponentialBackoff(cap=1.0, base=0.05), 5),
    )
    switchboard = Switchboard(redis)
    keys = ApiKeys(engine)
    try:
        async with switchboard.running(), switchboard.listening(names.KEYS_CHANNEL) as keys_changed:
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
                switchboard=switchboard,
                calls=Calls(redis, switchboard, timeout_s=settings.http_timeout_s),
                threads=CapacityLimiter(_THREADS),
            )
    finally:
        await redis.aclose()
        producer.close()
        engine.dispose()


def parts_of(request: Request) -> Parts:
    """Return the parts of the application that got this request."""
    return cast("Parts", request.app.state.parts)
