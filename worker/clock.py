"""Time for the flow: a sleep that a shutdown cuts short."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime


class Clock:
    """Bound to one event loop."""

    def __init__(self) -> None:
        """Start with no shutdown in sight."""
        self._stopping = asyncio.Event()

    @property
    def stopping(self) -> bool:
        """Return whether a shutdown has begun."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """Begin the shutdown: every sleep ends, and none begins."""
        self._stopping.set()

    async def sleep(self, seconds: float) -> bool:
        """Sleep; return True at the end, False if a shutdown came first."""
        if seconds <= 0:
            return not self.stopping
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return True
        return False

    def now(self) -> datetime:
        """Return the time, UTC."""
        return datetime.now(UTC)
