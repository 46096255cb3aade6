"""Who waits for which job: one subscription to Redis for all requests of the process.

A word on a job's channel (names.done_channel) says only that there is something new; who hears it looks for itself.

One task owns the connection. Requests say which channels they want and ring; only the owner subscribes, unsubscribes
and connects again, each time with a new connection: redis-py's PubSub connects again by itself inside whatever call
meets the loss, which two tasks at once break.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import redis.exceptions
import structlog
from redis.asyncio import Connection, Redis

from producer.gateway.background import in_background
from producer.gateway.problem import Kind, Problem

_log = structlog.get_logger("assistq.gateway")

_RETRY_S = 0.5
# Who asks to listen waits so long for the server's word that it does; an outage that is shorter is not noticed.
_SUBSCRIBED_WITHIN_S = 5.0
# A connection whose other end is gone without a word is noticed by the pong that does not come.
_PING_EVERY_S = 10.0
_SILENT_AT_MOST_S = 25.0
# So many names go into one command.
_NAMES_AT_ONCE = 1000


@dataclass(eq=False, slots=True)
class _Channel:
    listeners: set[asyncio.Event] = field(default_factory=set)
    # Both of the connection that there is now: SUBSCRIBE was sent, and answered.
    asked: bool = False
    subscribed: asyncio.Event = field(default_factory=asyncio.Event)


class Switchboard:
    """Wakes who listens to a channel; bound to one event loop."""

    def __init__(self, connection: Redis) -> None:
        """Make connections as this client does; they are none of its pool's."""
        self._redis = connection
        # Those that have listeners, and those that the owner has still to unsubscribe from.
        self._channels: dict[str, _Channel] = {}
        # Names that the owner has to look at, and the bell that says so.
        self._changed: set[str] = set()
        self._bell = asyncio.Event()

    def running(self) -> AbstractAsyncContextManager[None]:
        """Listen meanwhile."""
        return in_background(self._own_forever)

    @asynccontextmanager
    async def listening(self, channel: str) -> AsyncIterator[asyncio.Event]:
        """Yield an event that is set at each word on the channel; whoever waits for it clears it, then looks.

        Costs one round trip, and none on a channel that others listen to. Problem 503 if the server does not answer.
        Words may be lost while Redis is away: wait with a time limit, and look again.
        """
        event = asyncio.Event()
        found = self._channels.setdefault(channel, _Channel())
        found.listeners.add(event)
        try:
            if not found.subscribed.is_set():
                self._ring(channel)
                await _until_subscribed(found)
            yield event
        finally:
            found.listeners.discard(event)
            if not found.listeners:
                self._ring(channel)

    def _ring(self, channel: str) -> None:
        self._changed.add(channel)
        self._bell.set()

    async def _own_forever(self) -> None:
        while True:
            connection = self._redis.connection_pool.make_connection()
            try:
                await connection.connect()
                self._begin_anew()
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._read(connection))
                    group.create_task(self._write(connection))
            except* (redis.exceptions.RedisError, OSError) as lost:
                _log.warning("service_fault", part="redis", error=str(lost.exceptions[0]))
            except* Exception:  # noqa: BLE001 - it is logged
                # Nothing may end this task: the whole process would hear nothing any more.
                _log.exception("service_fault", part="redis", error="the switchboard failed")
            finally:
                with suppress(redis.exceptions.RedisError, OSError):
                    await connection.disconnect(nowait=True)
            await asyncio.sleep(_RETRY_S)

    def _begin_anew(self) -> None:
        """Forget what was subscribed to on the connection before."""
        for channel in self._channels.values():
            channel.asked = False
            channel.subscribed.clear()
        self._changed = set(self._channels)
        self._bell.set()

    async def _write(self, connection: Connection) -> None:
        while not _is_cancelled():
            try:
                async with asyncio.timeout(_PING_EVERY_S):
                    await self._bell.wait()
            except TimeoutError:
                await connection.send_command("PING", check_health=False)
                continue
            self._bell.clear()
            # All that came meanwhile in one command: a thousand new listeners cost no more writes than one.
            come, gone = self._take_changes()
            for command, names in (("SUBSCRIBE", come), ("UNSUBSCRIBE", gone)):
                for start in range(0, len(names), _NAMES_AT_ONCE):
                    await connection.send_command(command, *names[start : start + _NAMES_AT_ONCE], check_health=False)

    def _take_changes(self) -> tuple[list[str], list[str]]:
        """Return which channels to subscribe to, and which to leave; what is left is forgotten here."""
        come: list[str] = []
        gone: list[str] = []
        changed, self._changed = self._changed, set()
        for name in changed:
            channel = self._channels.get(name)
            if channel is None:
                continue
            if channel.listeners and not channel.asked:
                channel.asked = True
                come.append(name)
            elif not channel.listeners:
                del self._channels[name]
                if channel.asked:
                    gone.append(name)
        return come, gone

    async def _read(self, connection: Connection) -> None:
        while not _is_cancelled():
            answer: Any = await connection.read_response(
                timeout=_SILENT_AT_MOST_S, disconnect_on_error=False, push_request=True
            )
            if not isinstance(answer, list) or len(answer) != 3:  # a pong
                continue
            kind, name, _ = answer
            channel = self._channels.get(name.decode()) if isinstance(name, bytes) else None
            if channel is None or kind not in {b"message", b"subscribe"}:
                continue
            if kind == b"subscribe":
                channel.subscribed.set()
            # Also when it is subscribed to, as after an outage: words may have been lost before.
            for event in channel.listeners:
                event.set()


def _is_cancelled() -> bool:
    """Return whether this task was told to end: asyncio.wait_for, with which the client writes, may swallow that."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _until_subscribed(channel: _Channel) -> None:
    try:
        async with asyncio.timeout(_SUBSCRIBED_WITHIN_S):
            await channel.subscribed.wait()
    except TimeoutError:
        raise Problem(
            Kind.UNAVAILABLE, "the queue does not answer; try again", code="queue_unavailable", retry_after_s=1
        ) from None
