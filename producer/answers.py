"""What Redis answers to a producer: its text, and its refusals as our own errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import redis

from schemas.errors import ProducerError, QueueFull


@contextmanager
def answers() -> Iterator[None]:
    """Turn the client's errors into ProducerError."""
    try:
        yield
    except redis.RedisError as exc:
        raise refused(exc) or ProducerError(f"Redis does not answer as it should: {exc}") from exc


def refused(error: Exception) -> QueueFull | None:
    """Return the error of a server that has no room, or None if it is another."""
    if isinstance(error, redis.OutOfMemoryError):
        full = "the queue's memory is full (maxmemory)"
    elif "MISCONF" in str(error):
        full = f"the queue cannot write to its disk ({error})"
    else:
        return None
    return QueueFull(f"{full}; nothing of what it refused was written: make room, then send or run the same again")


def text(value: bytes | str) -> str:
    """Return a key or a value as text, whichever way the connection gives it."""
    return value.decode() if isinstance(value, bytes) else value
