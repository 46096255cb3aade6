"""Writes that must not be lost, as of a reply that was paid for: tried until Redis answers them."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from worker.errors import RedisAway
from worker.events import Events, ServiceFault

_PAUSE_AT_FIRST_S = 0.1
_PAUSE_AT_MOST_S = 2.0

Answer = TypeVar("Answer")


async def insist(write: Callable[[], Awaitable[Answer]], *, what: str, events: Events) -> Answer:
    """Return what Redis answers to the write, however long it is away, full or read-only.

    The write must be harmless to repeat. A lost lease and the end of a shutdown's grace cancel who
    waits here. A refusal that will not pass is raised as RedisAway.
    """
    pause_s = _PAUSE_AT_FIRST_S
    while True:
        try:
            return await write()
        except RedisAway as away:
            if not away.passes:
                raise
            events.emit(ServiceFault(part="redis", error=f"{what} waits: {away}"))
        # Not all at once: hundreds may wait for the same moment.
        await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
        pause_s = min(2 * pause_s, _PAUSE_AT_MOST_S)


async def to_its_end(write: Coroutine[Any, Any, Answer], *, within_s: float) -> Answer:
    """Return what the write returns; who is cancelled meanwhile lets it end first, for up to `within_s`.

    It may stand behind others that are on their way, and would be taken back.
    """
    writing = asyncio.create_task(write)
    try:
        return await asyncio.shield(writing)
    except asyncio.CancelledError:
        ends_at_s = time.monotonic() + within_s
        while not writing.done() and (left_s := ends_at_s - time.monotonic()) > 0:
            # A shutdown cancels more than once.
            with suppress(asyncio.CancelledError):
                await asyncio.wait({writing}, timeout=left_s)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        raise
