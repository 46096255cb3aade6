"""Every hour one of the worker processes prunes: old rows of SQL, and what Redis keeps of no use."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import redis
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from schemas import names
from schemas.file_retention import FileRetention
from schemas.queue_in_use import QueueInUse
from schemas.retention import PAUSE_S, Kind, Retention
from worker.events import Events, OldRowsPruned, ServiceFault
from worker.retention.routes import forget_idle_routes

# A round begins so long after the last one, or after its process was lost.
ROUND_EVERY_S = 60 * 60
_LOOK_EVERY_S = 60.0
# Known routes that are few enough to be left alone.
_ROUTES_KEPT = 1_000


class Rounds:
    """The pruning loop of one process."""

    def __init__(
        self,
        *,
        engine: Engine,
        connect: Callable[[], redis.Redis],
        keep_days: float | None,
        process: str,
        events: Events,
    ) -> None:
        """Prune rows that ended more than `keep_days` ago; None keeps them all.

        `connect` makes a client for the thread of a round.
        """
        self._engine = engine
        self._connect = connect
        self._keep_days = keep_days
        self._process = process
        self._events = events
        self._stopping = threading.Event()

    async def run_forever(self) -> None:
        """Begin a round whenever one is due and no other process has, until cancelled; what fails is told."""
        try:
            while True:
                try:
                    pruned = await asyncio.to_thread(self._round_if_due)
                    if pruned:
                        self._events.emit(OldRowsPruned({kind.value: count for kind, count in pruned.items()}))
                except redis.RedisError as exc:
                    self._events.emit(ServiceFault(part="redis", error=f"pruning: {type(exc).__name__}: {exc}"))
                except SQLAlchemyError as exc:
                    self._events.emit(ServiceFault(part="sql", error=f"pruning: {type(exc).__name__}"))
                except Exception as exc:  # noqa: BLE001 - a loop that ended in silence would prune no more
                    self._events.emit(ServiceFault(part="retention", error=f"{type(exc).__name__}: {exc}"))
                await asyncio.sleep(_LOOK_EVERY_S)
        finally:
            # A round that runs ends after its step.
            self._stopping.set()

    def _round_if_due(self) -> Counter[Kind]:
        connection = self._connect()
        try:
            # Not given back at the end: it is the time to the next round, also after a crash.
            if connection.set(names.PRUNING, self._process, nx=True, ex=ROUND_EVERY_S):
                return self._round(connection)
            return Counter()
        finally:
            connection.close()

    def _round(self, connection: redis.Redis) -> Counter[Kind]:
        forget_idle_routes(connection, above=_ROUTES_KEPT)
        pruned: Counter[Kind] = Counter()
        for step in self._steps(connection):
            pruned += step
            connection.expire(names.PRUNING, ROUND_EVERY_S)
            if self._stopping.wait(PAUSE_S):
                break
        return pruned

    def _steps(self, connection: redis.Redis) -> Iterator[Counter[Kind]]:
        if self._keep_days is None:
            # What nobody can read any more goes all the same.
            return (Counter({Kind.FILES: count}) for count in FileRetention(self._engine, before=None).steps())
        before = datetime.now(UTC) - timedelta(days=self._keep_days)
        return Retention(self._engine, QueueInUse(connection), before=before).steps()
