"""Keeps the leases of the jobs that this process runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from worker.errors import RedisAway
from worker.events import Events, ServiceFault
from worker.queue.queue import LEASE_S, RENEW_EVERY_S, Claimed, Hint, JobQueue, StaleJobError


class Leases:
    """One renewal for all jobs of the process, every RENEW_EVERY_S."""

    def __init__(self, queue: JobQueue, events: Events, *, now_s: Callable[[], float] = time.monotonic) -> None:
        """Start with no job held; `now_s` must go on while the process stands still."""
        self._queue = queue
        self._events = events
        self._now_s = now_s
        self._held: dict[Hint, asyncio.Task[object]] = {}
        # When each job that is held was certainly ours.
        self._sure_s: dict[Hint, float] = {}
        self._lost: set[Hint] = set()
        self._unfinished: dict[Hint, Claimed] = {}

    @asynccontextmanager
    async def held(self, claimed: Claimed, *, since_s: float | None = None) -> AsyncIterator[None]:
        """Renew the job's lease while the block runs; a lost lease ends the block with StaleJobError.

        `since_s` is when its claim was sent, by `now_s()`; now, if it is not said.
        """
        task = asyncio.current_task()
        assert task is not None, "held() is entered in a task"  # noqa: S101 - narrows the type
        self._held[claimed.hint] = task
        self._sure_s[claimed.hint] = self.now_s() if since_s is None else since_s
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
            self._sure_s.pop(claimed.hint, None)
            self._lost.discard(claimed.hint)

    def now_s(self) -> float:
        """Return the time on the clock of the leases."""
        return self._now_s()

    async def confirm(self, claimed: Claimed) -> None:
        """Ask if the job is still ours, where its lease may have ended since we knew; raises StaleJobError, RedisAway.

        Right before what cannot be taken back, or would pass for another's. A process that was
        stopped finds answers of before in its sockets, and would go on from them as if no time had passed.
        """
        asked_s = self._now_s()
        if asked_s - self._sure_s.get(claimed.hint, asked_s) < LEASE_S:
            return
        if await self._queue.renew([claimed.hint]):
            raise StaleJobError(claimed.id, at="confirm")
        self._sure_s[claimed.hint] = asked_s

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
        asked, asked_s = list(self._held), self._now_s()
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
            elif hint in self._sure_s:
                self._sure_s[hint] = asked_s
