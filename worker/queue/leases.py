"""Keeps the leases of the jobs that this process runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from worker.errors import RedisAway
from worker.events import Events, ServiceFault
from worker.queue.queue import LEASE_S, RENEW_EVERY_S, Claimed, Hint, JobQueue, StaleJobError


class Leases:
    """One renewal for all jobs of the process, every RENEW_EVERY_S."""

    def __init__(self, queue: JobQueue, events: Events) -> None:
        """Start with no job held."""
        self._queue = queue
        self._events = events
        self._held: dict[Hint, asyncio.Task[object]] = {}
        self._lost: set[Hint] = set()
        self._unfinished: dict[Hint, Claimed] = {}

    @asynccontextmanager
    async def held(self, claimed: Claimed) -> AsyncIterator[None]:
        """Renew the job's lease while the block runs; a lost lease ends the block with StaleJobError."""
        task = asyncio.current_task()
        assert task is not None, "held() is entered in a task"  # noqa: S101 - narrows the type
        self._held[claimed.hint] = task
        try:
            yield
        except RedisAway:
            self._unfinished[claimed.hint] = claimed
            raise
        except asyncio.CancelledError:
            if claimed.hint not in self._lost:
                self._unfinished[claimed.hint] = claimed
                raise
            task.uncancel()
            raise StaleJobError(claimed.id, at="lease") from None
        finally:
            self._held.pop(claimed.hint, None)
            self._lost.discard(claimed.hint)

    def let_go(self, claimed: Claimed) -> None:
        """Renew the job's lease no more: what follows is the write that ends our hold on it.

        A renewal that Redis answers after that write would else take the job for lost, and
        cancel its task before it has told of the end.
        """
        self._held.pop(claimed.hint, None)

    @property
    def unfinished(self) -> list[str]:
        """Return the ids of the jobs that run here, or were cut off and not given back yet."""
        return [hint.job_id for hint in (*self._held, *self._unfinished)]

    @property
    def count(self) -> int:
        """Return how many jobs run here now."""
        return len(self._held)

    async def give_back(self, *, delay_s: float) -> None:
        """Put the jobs back to wait that were cut off here, by a shutdown or because Redis was away.

        Their leases would end by themselves, but that counts as the death of a worker. Raises RedisAway.
        """
        left = list(self._unfinished.values())
        await asyncio.gather(*(self._put_back(claimed, delay_s) for claimed in left))

    async def _put_back(self, claimed: Claimed, delay_s: float) -> None:
        with suppress(StaleJobError):  # its end was written after all, or the sweeper came first
            await self._queue.snooze(claimed, delay_s=delay_s, burns_attempt=False, hold_lane=False)
        self._unfinished.pop(claimed.hint, None)

    async def renew_forever(self) -> None:
        """Renew until cancelled."""
        while True:
            await asyncio.sleep(RENEW_EVERY_S)
            if self._held:
                await self._renew()
            with suppress(RedisAway):
                await self.give_back(delay_s=LEASE_S)

    async def _renew(self) -> None:
        asked = list(self._held)
        try:
            lost = await self._queue.renew(asked)
        except RedisAway as exc:
            self._events.emit(ServiceFault(part="redis", error=f"leases were not renewed: {exc}"))
            return
        for hint in asked:
            task = self._held.get(hint)
            # Somebody else runs it by now: what this task would still buy or write is waste. A
            # job that ended while the renewal was on its way is no longer held.
            if hint.job_id in lost and task is not None:
                self._lost.add(hint)
                task.cancel()
