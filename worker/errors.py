"""The faults of the services that every worker needs, as our own errors.

    RedisAway    Redis cannot be reached, or refuses; raised by worker/queue and worker/limits

The database's twin is StoreAway (worker/store/base.py), the provider's are in
worker/providers/errors.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from redis import RedisError


class RedisAway(Exception):  # noqa: N818 - the name says what happened
    """Redis did not do what it was asked, after all retries of the client."""


@contextmanager
def redis_away() -> Iterator[None]:
    """Turn the client's errors into RedisAway."""
    try:
        yield
    except (RedisError, OSError) as exc:
        raise RedisAway(f"{type(exc).__name__}: {exc}") from exc
