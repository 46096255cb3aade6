"""The faults of the services that every worker needs, as our own errors.

    RedisAway    Redis cannot be reached, or refuses; raised by worker/queue and worker/limits

The database's twin is StoreAway (worker/store/base.py), the provider's are in
worker/providers/errors.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from traceback import walk_tb
from types import TracebackType

from redis import RedisError
from redis.exceptions import NoScriptError, ResponseError

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
    # A server that was started again meanwhile does not know the script, so it has done nothing.
    if not isinstance(error, ResponseError) or isinstance(error, NoScriptError):
        return True
    # The client knows some codes, which it keeps apart from the text.
    return (error.status_code or str(error).partition(" ")[0]) in _PASSING


_SEAM = _Seam()
# Of each error's traceback, the innermost.
_PLACES = 8


class WordsNotRecorded(Exception):  # noqa: N818 - the name says what happened
    """Stands in the log for an error of a job that is not to be recorded, whose words may quote the job."""


def without_words(error: BaseException) -> WordsNotRecorded:
    """Return an error that tells the type and place of this one, and of those behind it, and none of their words."""
    return WordsNotRecorded("; ".join(_types_and_places(error, set())))


def _types_and_places(error: BaseException, told: set[int]) -> Iterator[str]:
    if id(error) in told:
        return
    told.add(id(error))
    places = [
        f"{frame.f_code.co_filename}:{line} in {frame.f_code.co_name}" for frame, line in walk_tb(error.__traceback__)
    ]
    yield f"{type(error).__name__} at {', '.join(places[-_PLACES:]) or 'an unknown place'}"
    behind = error.exceptions if isinstance(error, BaseExceptionGroup) else (error.__cause__, error.__context__)
    for each in behind:
        if each is not None:
            yield from _types_and_places(each, told)


def redis_away() -> AbstractContextManager[None]:
    """Turn the client's errors into RedisAway."""
    return _SEAM
