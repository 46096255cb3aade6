"""Admission: releases waiting jobs as workers become free, and hints them to Dramatiq.

Runs in every worker process; the scripts are atomic, so there is no leader to lose.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from redis.asyncio import Redis

from schemas import names
from worker.admission.releases import Releases
from worker.errors import RedisAway, redis_away
from worker.events import Events, ServiceFault
from worker.queue.queue import Hint, JobQueue

# A wake-up may be lost (Redis restarts, a hold expires without a word): look this often anyway.
LOOK_EVERY_S = 0.25
# Many ends and lanes' openings within so short a time are one reason to look.
LOOK_AT_MOST_EVERY_S = 0.005
RELEASE_AT_ONCE = 256
HEARTBEAT_EVERY_S = 2.0
HEARTBEAT_TTL_S = 8.0
_RETRY_S = 1.0
# One wait for a message; shorter than the client's socket time-out.
_LISTEN_S = 10.0

SendHints = Callable[[list[Hint]], Awaitable[None]]


class Admission:
    """The release loop of one process, its heartbeat, and its ear for producers."""

    def __init__(
        self,
        *,
        process: str,
        capacity: int,
        queue: JobQueue,
        releases: Releases,
        redis: Redis,
        send: SendHints,
        events: Events,
        store_is_away: Callable[[], bool] = lambda: False,
    ) -> None:
        """Release for a process that can run `capacity` jobs at once; `send` hands hints to Dramatiq.

        While `store_is_away` it takes one at a time, to see when that is over: none could begin or end.
        """
        self._store_is_away = store_is_away
        self._process = process
        self._capacity = capacity
        self._queue = queue
        self._releases = releases
        self._redis = redis
        self._send = send
        self._events = events
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Look at once: a job ended here, so there is room."""
        self._wake.set()

    async def release_forever(self) -> None:
        """Release, wait for a wake-up, and so on until cancelled."""
        while True:
            self._wake.clear()
            wait_s = LOOK_EVERY_S
            try:
                wait_s = await self._release()
            except Exception as exc:  # noqa: BLE001 - a loop that ended in silence would stop this process's work
                part = "redis" if isinstance(exc, RedisAway) else "admission"
                self._events.emit(ServiceFault(part=part, error=f"nothing was released: {type(exc).__name__}: {exc}"))
                await asyncio.sleep(_RETRY_S)
            if wait_s > 0:
                await asyncio.sleep(min(wait_s, LOOK_AT_MOST_EVERY_S))
            # Not wait_for: Python 3.11's swallows a cancellation that meets the wake-up.
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()

    async def _release(self) -> float:
        """Release what may go, and return how long to wait before the next look."""
        released = await self._releases.release(RELEASE_AT_ONCE)
        if released.hints:
            # A crash before the hints are sent costs the jobs their claim time, no more.
            await self._send(released.hints)
        if len(released.hints) == RELEASE_AT_ONCE:
            return 0
        return LOOK_EVERY_S if released.look_again_s is None else min(LOOK_EVERY_S, released.look_again_s)

    async def beat_forever(self) -> None:
        """Tell the capacity of this process, until cancelled."""
        while True:
            away = self._store_is_away()
            try:
                capacity = min(1, self._capacity) if away else self._capacity
                await self._queue.heartbeat(self._process, capacity=capacity, ttl_s=HEARTBEAT_TTL_S)
            except RedisAway as exc:
                self._events.emit(ServiceFault(part="redis", error=f"heartbeat: {exc}"))
            self._wake.set()
            due_s = time.monotonic() + HEARTBEAT_EVERY_S
            # At once when that changes, as it is seen: the store has no event to wait for.
            while time.monotonic() < due_s and self._store_is_away() == away:  # noqa: ASYNC110
                await asyncio.sleep(LOOK_EVERY_S)

    async def listen_forever(self) -> None:
        """Wake the release loop at each word of a producer, until cancelled."""
        while True:
            try:
                with redis_away():
                    await self._wake_on_messages()
            except RedisAway:
                # The release loop reports the outage; this one only waits for its end.
                await asyncio.sleep(_RETRY_S)

    async def _wake_on_messages(self) -> None:
        async with self._redis.pubsub(ignore_subscribe_messages=True) as channel:
            await channel.subscribe(names.WAKE_CHANNEL)
            while True:
                if await channel.get_message(timeout=_LISTEN_S) is not None:
                    self._wake.set()
