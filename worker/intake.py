"""Dramatiq's broker on Redis, which fetches no message that this process has no room for.

Dramatiq waits for a connection that is lost, but takes a server that refuses, as one whose memory
or disk is full does, for a fault in itself. So a refusal is told to it as a lost connection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from dramatiq import Consumer, MessageProxy
from dramatiq.brokers.redis import RedisBroker
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

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 5000) -> Consumer:
        """Return a consumer of the queue; `timeout` in ms."""
        consumer = super().consume(queue_name, prefetch, timeout)
        return _Bounded(consumer, self._has_room.get(queue_name, _always), timeout_s=timeout / 1000)


def _always(_timeout_s: float) -> bool:
    return True


@contextmanager
def _waits() -> Iterator[None]:
    try:
        yield
    except RedisError as exc:
        raise ConnectionClosed(exc) from None


class _Bounded(Consumer):
    def __init__(self, consumer: Consumer, has_room: HasRoom, *, timeout_s: float) -> None:
        self._consumer = consumer
        self._has_room = has_room
        self._timeout_s = timeout_s

    def __next__(self) -> MessageProxy | None:
        """Return the next message, or None when there was none, or no room, for the time-out."""
        if not self._has_room(self._timeout_s):
            return None
        with _waits():
            return next(self._consumer)

    def ack(self, message: MessageProxy) -> None:
        with _waits():
            self._consumer.ack(message)

    def nack(self, message: MessageProxy) -> None:
        with _waits():
            self._consumer.nack(message)

    def requeue(self, messages: Iterable[MessageProxy]) -> None:
        with _waits():
            self._consumer.requeue(messages)

    def close(self) -> None:
        self._consumer.close()
