"""Who waits for which job: one subscription to Redis for all requests of the process.

A word on a job's channel (names.done_channel) says only that there is something new; who hears it looks for itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import redis.exceptions
import structlog
from redis.asyncio import Redis
from redis.asyncio.client import PubSub

_log = structlog.get_logger("assistq.gateway")

_RETRY_S = 0.5
# A subscription needs one channel at least.
_OWN_CHANNEL = "aq:gateway"


class Switchboard:
    """Wakes who listens to a channel; bound to one event loop."""

    def __init__(self, connection: Redis) -> None:
        """Use this client for one connection of its own."""
        self._redis = connection
        self._listeners: dict[str, set[asyncio.Event]] = {}
        self._pubsub: PubSub | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Listen meanwhile."""
        self._pubsub = self._redis.pubsub()
        await self._pubsub.subscribe(_OWN_CHANNEL)
        task = asyncio.create_task(self._listen(self._pubsub))
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await self._pubsub.aclose()

    @asynccontextmanager
    async def listening(self, channel: str) -> AsyncIterator[asyncio.Event]:
        """Yield an event that is set at each word on the channel; whoever waits for it clears it, then looks.

        Words may be lost while Redis is away: wait with a time limit, and look again.
        """
        assert self._pubsub is not None, "the switchboard is not running"  # noqa: S101 - a mistake of ours
        event = asyncio.Event()
        listeners = self._listeners.setdefault(channel, set())
        listeners.add(event)
        try:
            if len(listeners) == 1:
                await self._pubsub.subscribe(channel)
            yield event
        finally:
            listeners.discard(event)
            if not listeners:
                self._listeners.pop(channel, None)
                with suppress(redis.exceptions.RedisError):
                    await self._pubsub.unsubscribe(channel)

    async def _listen(self, pubsub: PubSub) -> None:
        while True:
            try:
                async for message in pubsub.listen():
                    # Also when the channel is subscribed to, as after an outage: words may have been lost before.
                    if message["type"] in {"message", "subscribe"}:
                        self._wake(message["channel"].decode())
            except redis.exceptions.RedisError as exc:
                _log.warning("service_fault", part="redis", error=str(exc))
                for channel in self._listeners:
                    self._wake(channel)
                await asyncio.sleep(_RETRY_S)

    def _wake(self, channel: str) -> None:
        for event in self._listeners.get(channel, ()):
            event.set()
