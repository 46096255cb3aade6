"""Runs what would hold the event loop up in threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

import anyio

Given = ParamSpec("Given")
Found = TypeVar("Found")


class InThreads:
    """Runs no more at once than it has threads: each is taken until its work ends, and so is what that uses.

    Who is cancelled leaves alone what runs; what has not begun never does.
    """

    def __init__(self, at_once: int) -> None:
        """Have so many threads; they start as they are needed."""
        self._pool = ThreadPoolExecutor(at_once)

    async def __call__(self, function: Callable[Given, Found], *args: Given.args, **kwargs: Given.kwargs) -> Found:
        """Return what the function returns, or raise what it raises."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, partial(function, *args, **kwargs))

    async def to_its_end(self, function: Callable[Given, Found], *args: Given.args, **kwargs: Given.kwargs) -> Found:
        """Do the same; who is cancelled first waits for it, as for a write that is to be taken back then."""
        running = asyncio.ensure_future(self(function, *args, **kwargs))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            with anyio.CancelScope(shield=True):
                await asyncio.wait({running})
            raise

    def close(self) -> None:
        """Begin nothing more; what runs is not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)
