"""The faults of the services that every worker needs, as our own errors.

    RedisAway    Redis cannot be reached, or refuses; raised by worker/queue and worker/limits

The database's twin is StoreAway (worker/store/base.py), the provider's are in
worker/providers/errors.py.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from types import TracebackType

from redis import RedisError
from redis.exceptions import ResponseError

# What a server answers while its memory or disk is full, it starts, changes its role or is held up. Any
# other refusal is of what was asked, and stays.
_PASSING = {"BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MISCONF", "NOREPLICAS", "OOM", "READONLY", "TRYAGAIN"}


class RedisAway(Exception):  # noqa: N818 - the name says what happened
    """Redis did not do what it was asked, after all retries of the client.

    `passes` says whether it may do it later.
    """

    def __init__(self, what: str, *, passes: bool = True) -> None:
        """Say what happened."""
        super().__init__(what)
        self.passes = passes


class _Seam(AbstractContextManager[None]):
    """Not a generator, which costs 3 us: this stands around every call of Redis."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, (RedisError, OSError)):
            raise RedisAway(f"{type(error).__name__}: {error}", passes=_passes(error)) from error


def _passes(error: RedisError | OSError) -> bool:
    if not isinstance(error, ResponseError):
        return True
    # The client knows some codes, which it keeps apart from the text.
    return (error.status_code or str(error).partition(" ")[0]) in _PASSING


_SEAM = _Seam()


def redis_away() -> AbstractContextManager[None]:
    """Turn the client's errors into RedisAway."""
    return _SEAM
