"""Time for the flow, a sleep that a shutdown cuts short, and the end of what runs for ever."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

_CANCEL_AGAIN_S = 0.2


class Clock:
    """Bound to one event loop."""

    def __init__(self) -> None:
        """Start with no shutdown in sight."""
        self._stopping = asyncio.Event()
        self._naps: set[asyncio.Future[None]] = set()

    @property
    def stopping(self) -> bool:
        """Return whether a shutdown has begun."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """Begin the shutdown: every sleep ends, and none begins."""
        self._stopping.set()
        for word in self._naps:
            _wake(word)

    async def sleep(self, seconds: float) -> bool:
        """Sleep; return True at the end, False if a shutdown came first."""
        if seconds <= 0:
            return not self.stopping
        try:
            # Not wait_for: Python 3.11's swallows a cancellation that meets the end of the wait.
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return True
        return False

    async def nap(self, word: asyncio.Future[None], *, seconds: float) -> bool:
        """Sleep until the word comes, at most so long; return False if a shutdown came first. Cheap by the thousand."""
        if self.stopping:
            return False
        timer = asyncio.get_running_loop().call_later(seconds, _wake, word)
        self._naps.add(word)
        try:
            await word
        finally:
            timer.cancel()
            self._naps.discard(word)
        return not self.stopping

    def now(self) -> datetime:
        """Return the time, UTC."""
        return datetime.now(UTC)


def _wake(word: asyncio.Future[None]) -> None:
    if not word.done():
        word.set_result(None)


async def end(tasks: Iterable[asyncio.Task[Any]], *, within_s: float = math.inf) -> None:
    """Cancel the tasks until they have ended, or for `within_s`.

    Once is not enough: Python 3.11's wait_for, through which the Redis client sends,
    swallows a cancellation that meets the end of its wait.
    """
    every = pending = set(tasks)
    deadline_s = time.monotonic() + within_s
    while pending and time.monotonic() < deadline_s:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=_CANCEL_AGAIN_S)
    await asyncio.gather(*(every - pending), return_exceptions=True)
