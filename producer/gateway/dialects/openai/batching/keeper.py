"""Keeps batches going for as long as the gateway runs: looks for those that need work, claims them, works on them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import anyio
import structlog
from anyio import CapacityLimiter
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from producer.client import Producer
from producer.gateway.background import in_background
from producer.gateway.dialects.openai.batching.finish import Finish
from producer.gateway.dialects.openai.batching.intake import Intake
from producer.gateway.dialects.openai.batching.lease import LEASE, Lease, LeaseLostError, StoppingError
from producer.gateway.dialects.openai.batching.store import OpenAIBatches
from producer.gateway.files import Files
from schemas.errors import AssistqError
from schemas.tables import OpenAIBatch

Found = TypeVar("Found")

_log = structlog.get_logger("assistq.gateway")

LOOK_EVERY_S = 0.5
# How many batches a gateway works on at once, each in a thread of its own.
AT_ONCE = 4
# What is tried again comes back later each time, up to the second.
_AGAIN_AFTER_S, _AGAIN_AFTER_AT_MOST_S = 2.0, 300.0


class BatchKeeper:
    """The work on OpenAI's batches of one gateway."""

    def __init__(self, engine: Engine, producer: Producer) -> None:
        """Work on this database and queue."""
        files = Files(engine)
        self._engine = engine
        self._store = OpenAIBatches(engine)
        self._intake = Intake(engine, files, producer)
        self._finish = Finish(engine, files)
        # Not those of the routes: a large file takes minutes.
        self._threads = CapacityLimiter(AT_ONCE + 1)
        self._stopping = threading.Event()
        self._working: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Work meanwhile; what is under way at the end is left for the next gateway, or another one."""
        try:
            async with in_background(self._look_on):
                yield
        finally:
            self._stopping.set()
            await asyncio.gather(*self._working)

    async def _look_on(self) -> None:
        while True:
            free = AT_ONCE - len(self._working)
            if free > 0:
                for batch_id in await self._due(free):
                    task = asyncio.create_task(self._work(batch_id))
                    self._working.add(task)
                    task.add_done_callback(self._working.discard)
            await asyncio.sleep(LOOK_EVERY_S)

    async def _due(self, limit: int) -> list[str]:
        try:
            return list(await self._in_thread(lambda: self._store.due(datetime.now(UTC), limit=limit)))
        except SQLAlchemyError as exc:
            _log.warning("batches_wait", error=type(exc).__name__)
            return []

    async def _work(self, batch_id: str) -> None:
        try:
            await self._in_thread(lambda: self._claim_and_work(batch_id))
        except (SQLAlchemyError, AssistqError) as exc:
            _log.warning("batch_waits", batch_id=batch_id, error=str(exc))
        except Exception:  # noqa: BLE001 - others go on, and it is tried again
            _log.exception("batch_work_crashed", batch_id=batch_id)

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
        return await anyio.to_thread.run_sync(function, limiter=self._threads)


def _pause(claims: int) -> timedelta:
    return timedelta(seconds=min(_AGAIN_AFTER_S * claims, _AGAIN_AFTER_AT_MOST_S))
