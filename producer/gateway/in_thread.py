"""Runs what would hold the event loop up in threads, no more at once than their places."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

import anyio
from anyio import CapacityLimiter

Found = TypeVar("Found")


async def in_thread(places: CapacityLimiter, function: Callable[[], Found], *, to_its_end: bool = False) -> Found:
    """Return what the function returns; its place is taken until it ends, and so is what it uses, such as SQL.

    Who is cancelled leaves it alone, or, with `to_its_end`, first waits for it: what comes next must find it done.
    """
    place = object()
    await places.acquire_on_behalf_of(place)
    running = asyncio.create_task(anyio.to_thread.run_sync(function, limiter=CapacityLimiter(1)))
    running.add_done_callback(lambda _: places.release_on_behalf_of(place))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        if to_its_end:
            with anyio.CancelScope(shield=True):
                await asyncio.wait({running})
        raise
