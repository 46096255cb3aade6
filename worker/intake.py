"""Dramatiq's broker on Redis, which fetches no message that this process has no room for.

Dramatiq waits for a connection that is lost, but takes a server that refuses, as one whose memory
or disk is full does, for a fault in itself. So a refusal is told to it as a lost connection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from threading import Event
from typing import Any

from dramatiq import Consumer, Message, MessageProxy
from dramatiq.brokers.redis import RedisBroker
from dramatiq.common import compute_backoff
from dramatiq.errors import ConnectionClosed
from redis import RedisError

# Waits for room for some seconds; says whether there is.
HasRoom = Callable[[float], bool]


class BoundedBroker(RedisBroker):
    """A message is acknowledged long before its job ends, so that Dramatiq's own prefetch bounds nothing."""

    def __init__(self, *, has_room: Mapping[str, HasRoom], **parameters: Any) -> None:
        """Ask `has_room`, by the name of the queue, before each fetch; the rest as RedisBroker."""
        super().__init__(**parameters)  # type: ignore[no-untyped-call]
        self._has_room = has_room
        self._bells: dict[str, Event] = {}

    def enqueue(self, message: Message[Any], *, delay: int | None = None) -> Message[Any]:
        """Put the message in its queue, and wake this process's consumer of it: most hints are taken where they arise.

        Other processes find it when they look next.
        """
        enqueued = super().enqueue(message, delay=delay)
        self._bell(message.queue_name).set()
        return enqueued

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 5000) -> Consumer:
        """Return a consumer of the queue; `timeout` in ms."""
        # It would sleep after each look in vain, deaf to the bell.
        consumer = super().consume(queue_name, prefetch, timeout=0)
        return _Bounded(consumer, self._has_room.get(queue_name, _always), self._bell(queue_name), idle_ms=timeout)

    def _bell(self, queue_name: str) -> Event:
        return self._bells.setdefault(queue_name, Event())


def _always(_timeout_s: float) -> bool:
    return True


@contextmanager
def _waits() -> Iterator[None]:
    try:
        yield
    except RedisError as exc:
        raise ConnectionClosed(exc) from None


class _Bounded(Consumer):
    def __init__(self, consumer: Consumer, has_room: HasRoom, bell: Event, *, idle_ms: int) -> None:
        self._consumer = consumer
        self._has_room = has_room
        self._bell = bell
        self._idle_ms = idle_ms
        self._misses = 0

    def __next__(self) -> MessageProxy | None:
        """Return the next message, or None when there was none, or no room, for a time: the time-out at most."""
        if not self._has_room(self._idle_ms / 1000):
            return None
        # Before the look, so that what is rung in the middle of it is heard.
        self._bell.clear()
        with _waits():
            message = next(self._consumer)
        if message is None:
            self._misses, pause_ms = compute_backoff(self._misses, max_backoff=self._idle_ms)
            self._bell.wait(pause_ms / 1000)
        else:
            self._misses = 0
        return message

    def ack(self, message: MessageProxy) -> None:
        with _waits():
            self._consumer.ack(message)
        # Who has fetched as much as it may looks no further until this.
        self._bell.set()

    def nack(self, message: MessageProxy) -> None:
        with _waits():
            self._consumer.nack(message)

    def requeue(self, messages: Iterable[MessageProxy]) -> None:
        with _waits():
            self._consumer.requeue(messages)

    def close(self) -> None:
        self._consumer.close()
