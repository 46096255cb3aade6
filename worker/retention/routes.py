"""Routes are found by the jobs that take them; those that no job takes any more are forgotten."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, cast

import redis

from schemas import names
from schemas.scripts import read_script

_JOBS_AT_ONCE = 1_000
_ROUTES_AT_ONCE = 200


def forget_idle_routes(connection: redis.Redis, *, above: int) -> int:
    """Forget the lanes of routes without jobs, where more than `above` are known; return how many.

    Looks at every job that has not ended, a few at a time: below the bound that is not worth it.
    """
    if connection.hlen(names.ROUTES) <= above:
        return 0
    used = set()
    for keys in _some(connection.scan_iter(match=names.job("*"), count=_JOBS_AT_ONCE), _JOBS_AT_ONCE):
        with connection.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.hget(key, "route")
            used.update(pipe.execute())
    script = connection.register_script(read_script("worker.retention", "forget_routes.lua"))
    idle = (route for route, _ in connection.hscan_iter(names.ROUTES) if route not in used)
    return sum(int(cast("int", script(args=routes))) for routes in _some(idle, _ROUTES_AT_ONCE))


def _some(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while some := list(islice(iterator, size)):
        yield some
