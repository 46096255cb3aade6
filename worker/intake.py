"""Dramatiq's broker on Redis, which fetches no message that this process has no room for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dramatiq import Consumer, MessageProxy
from dramatiq.brokers.redis import RedisBroker

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
        has_room = self._has_room.get(queue_name)
        return consumer if has_room is None else _Bounded(consumer, has_room, timeout_s=timeout / 1000)


class _Bounded(Consumer):
    def __init__(self, consumer: Consumer, has_room: HasRoom, *, timeout_s: float) -> None:
        self._consumer = consumer
        self._has_room = has_room
        self._timeout_s = timeout_s

    def __next__(self) -> MessageProxy | None:
        """Return the next message, or None when there was none, or no room, for the time-out."""
        return next(self._consumer) if self._has_room(self._timeout_s) else None

    def ack(self, message: MessageProxy) -> None:
        self._consumer.ack(message)

    def nack(self, message: MessageProxy) -> None:
        self._consumer.nack(message)

    def requeue(self, messages: Iterable[MessageProxy]) -> None:
        self._consumer.requeue(messages)

    def close(self) -> None:
        self._consumer.close()
