"""What one process runs at once: its bound, and the end of it all at a shutdown."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from worker.clock import end

T = TypeVar("T")

# How long what is cancelled may take to end. A tool's function may swallow it for ever.
_HEED_WITHIN_S = 1.5


class InFlight(Generic[T]):
    """Runs each item in a task of the event loop, `capacity` of them at a time.

    Items come from other threads, which so wait for nothing. A thread that fetches more asks
    `has_room` first, so that what this process cannot run yet stays for another.
    """

    def __init__(
        self,
        run: Callable[[T], Awaitable[None]],
        *,
        capacity: int,
        on_crash: Callable[[T, Exception], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """Run on this loop; `on_crash` hears of an error that `run` lets out."""
        self._run = run
        self._capacity = capacity
        self._on_crash = on_crash
        self._loop = loop
        self._places = asyncio.Semaphore(capacity)
        self._tasks: set[asyncio.Task[None]] = set()
        self._count = 0
        self._room = threading.Condition()

    def take(self, items: Sequence[T]) -> None:
        """Run these; from any thread. Those beyond the capacity wait for a place."""
        with self._room:
            self._count += len(items)
        self._loop.call_soon_threadsafe(self._begin, items)

    def has_room(self, timeout_s: float) -> bool:
        """Return whether one more could run now; from any thread but the loop's, after up to `timeout_s`."""
        with self._room:
            return self._room.wait_for(lambda: self._count < self._capacity, timeout_s)

    async def ended(self, *, within_s: float) -> None:
        """Return when all that was taken has ended; what has not within the time is cancelled.

        What does not heed that either is left to itself.
        """
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=max(0.0, within_s))
        await end(list(self._tasks), within_s=_HEED_WITHIN_S)

    def _begin(self, items: Sequence[T]) -> None:
        for item in items:
            task = self._loop.create_task(self._run_one(item))
            self._tasks.add(task)
            task.add_done_callback(self._leave)

    async def _run_one(self, item: T) -> None:
        async with self._places:
            try:
                await self._run(item)
            except Exception as exc:  # noqa: BLE001 - nobody awaits the task: it is told here
                self._on_crash(item, exc)

    def _leave(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        with self._room:
            self._count -= 1
            self._room.notify()
