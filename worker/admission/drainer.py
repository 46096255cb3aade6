"""Brings cancelled jobs that wait to their end, past the limits: they call nobody.

Runs in every worker process; each takes what no other took.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from worker.clock import Clock
from worker.errors import RedisAway
from worker.events import Events, ServiceFault
from worker.queue.queue import Hint, JobQueue

DRAIN_EVERY_S = 0.5
DRAIN_AT_ONCE = 200

RunJob = Callable[[Hint], Awaitable[None]]


class Drainer:
    """The drain loop of one process."""

    def __init__(
        self,
        *,
        queue: JobQueue,
        run: RunJob,
        clock: Clock,
        events: Events,
        store_is_away: Callable[[], bool] = lambda: False,
    ) -> None:
        """Take the parts; `run` runs a job to its end, and must not raise for what may happen.

        While `store_is_away` no job can end: one at a time tries.
        """
        self._store_is_away = store_is_away
        self._queue = queue
        self._run = run
        self._clock = clock
        self._events = events

    async def run_forever(self) -> None:
        """Drain until cancelled, or until the shutdown begins."""
        while await self._clock.sleep(DRAIN_EVERY_S):
            try:
                while hints := await self._queue.drain(1 if self._store_is_away() else DRAIN_AT_ONCE):
                    await asyncio.gather(*(self._run(hint) for hint in hints))
                    if self._store_is_away():
                        break
            except RedisAway as exc:
                self._events.emit(ServiceFault(part="redis", error=f"drain: {exc}"))
            except Exception as exc:  # noqa: BLE001 - a loop that ended in silence would leave cancelled jobs waiting
                self._events.emit(ServiceFault(part="drainer", error=f"{type(exc).__name__}: {exc}"))
