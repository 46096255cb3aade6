"""The faults of the services that every worker needs, as our own errors.

    RedisAway    Redis cannot be reached, or refuses; raised by worker/queue and worker/limits

The database's twin is StoreAway (worker/store/base.py), the provider's are in
worker/providers/errors.py.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from types import TracebackType

from redis import RedisError


class RedisAway(Exception):  # noqa: N818 - the name says what happened
    """Redis did not do what it was asked, after all retries of the client."""


class _Seam(AbstractContextManager[None]):
    """Not a generator, which costs 3 us: this stands around every call of Redis."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, (RedisError, OSError)):
            raise RedisAway(f"{type(error).__name__}: {error}") from error


_SEAM = _Seam()


def redis_away() -> AbstractContextManager[None]:
    """Turn the client's errors into RedisAway."""
    return _SEAM
