"""The threads in which deliveries reach the database: their own, so that one that hangs holds up nothing else.

asyncio's threads, of which there are few, send jobs and look up names.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

# Claims and records are short; more would only wait for the connections of the engine.
_THREADS = 8

P = ParamSpec("P")
T = TypeVar("T")


class SqlThreads:
    """A few threads, which start when they are first needed."""

    def __init__(self) -> None:
        """No thread runs yet."""
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="webhooks")

    async def run(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Do what blocks in one of the threads; wait for it on the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(work, *args, **kwargs))

    def close(self) -> None:
        """Begin nothing more, and wait for none: a query that hangs is the shutdown's to end (worker/shutdown.py)."""
        self._threads.shutdown(wait=False, cancel_futures=True)
