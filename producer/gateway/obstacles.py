"""What no patience of a caller's changes: a lane before a wall or paused, no worker at all, our own shutdown.

One look a second, for all calls that wait; it costs the same for one call and for a thousand of the same assistants.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass, field

import redis.exceptions
import structlog
from redis.asyncio import Redis

from producer.answers import text
from producer.capacity import live_capacity
from producer.gateway.background import in_background
from producer.gateway.failures import kind_of
from producer.gateway.problem import Kind, Problem
from schemas import names
from schemas.job import JobRecord
from schemas.lane import LaneFault
from schemas.outcome import Code

_log = structlog.get_logger("assistq.gateway")

LOOK_EVERY_S = 0.5
# A worker that is started again takes jobs within this.
NO_WORKER_WITHIN_S = 10.0
_PAUSED_RETRY_S = 30.0
# A lane that opens sooner is about to be tried: by the job that waits, perhaps.
_OPENS_SOON_MS = 250
# Of a job in these states a worker will know more in a moment.
_OUT = {b"released", b"running"}


@dataclass(eq=False, slots=True)
class _Watched:
    record: JobRecord
    trouble: asyncio.Future[Problem]
    since_s: float = field(default_factory=time.monotonic)

    def meets(self, problem: Problem) -> None:
        if not self.trouble.done():
            self.trouble.set_result(problem)


class Obstacles:
    """Tells calls that wait what they wait for in vain; bound to one event loop."""

    def __init__(self, connection: Redis) -> None:
        """Use this client."""
        self._redis = connection
        self._watched: set[_Watched] = set()
        self._stopped: Callable[[], Problem] | None = None
        # Since when every look found no worker.
        self._nobody_since_s: float | None = None

    def running(self) -> AbstractAsyncContextManager[None]:
        """Look meanwhile."""
        return in_background(self._look_forever)

    @contextmanager
    def watched(self, record: JobRecord) -> Iterator[asyncio.Future[Problem]]:
        """Yield what is done once something stands between the job and its end."""
        watched = _Watched(record, asyncio.get_running_loop().create_future())
        if self._stopped is not None:
            watched.meets(self._stopped())
        self._watched.add(watched)
        try:
            yield watched.trouble
        finally:
            self._watched.discard(watched)

    def stop(self, problem: Callable[[], Problem]) -> None:
        """Tell this to all who wait, and who come from now on."""
        self._stopped = problem
        for watched in self._watched:
            watched.meets(problem())

    async def _look_forever(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            if not self._watched:
                continue
            try:
                await self._look(list(self._watched))
            except redis.exceptions.RedisError as exc:
                _log.warning("service_fault", part="redis", error=str(exc))
            except Exception:  # noqa: BLE001 - it is logged, and the next look may find them
                _log.exception("obstacles_crashed")

    async def _look(self, calls: list[_Watched]) -> None:
        routes = list({each.record.job.route for each in calls})
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.time()
            pipe.hvals(names.WORKERS)
            pipe.hmget(names.ROUTES, routes)
            pipe.hgetall(names.FAULTS)
            pipe.smembers(names.PAUSED)
            (seconds, microseconds), workers, lanes, faults, paused = await pipe.execute()
        now_ms = seconds * 1000 + microseconds // 1000
        self._tell_of_no_worker(calls, capacity=live_capacity(workers, now_ms))
        lane_of = dict(zip(routes, lanes, strict=True))
        stuck = [each for each in calls if lane_of[each.record.job.route] in (faults.keys() | paused)]
        if stuck:
            await self._look_closer(stuck, lane_of, faults=faults, paused=paused, now_ms=now_ms)

    def _tell_of_no_worker(self, calls: list[_Watched], *, capacity: int) -> None:
        now_s = time.monotonic()
        if capacity > 0:
            self._nobody_since_s = None
            return
        if self._nobody_since_s is None:
            self._nobody_since_s = now_s
        for each in calls:
            if now_s - max(self._nobody_since_s, each.since_s) >= NO_WORKER_WITHIN_S:
                each.meets(
                    Problem(
                        Kind.UNAVAILABLE,
                        "no worker takes jobs; start one with `assistq up`",
                        code="no_workers",
                        retry_after_s=NO_WORKER_WITHIN_S,
                    )
                )

    async def _look_closer(
        self,
        stuck: list[_Watched],
        lane_of: dict[str, bytes],
        *,
        faults: dict[bytes, bytes],
        paused: set[bytes],
        now_ms: int,
    ) -> None:
        lanes = list({lane_of[each.record.job.route] for each in stuck})
        async with self._redis.pipeline(transaction=False) as pipe:
            for lane in lanes:
                # The cool-down, and not when the lane is looked at again, which is also put off for want of room.
                pipe.hget(names.limit(text(lane)), "cool_until_us")
            for each in stuck:
                pipe.hget(names.job(each.record.id), "state")
            found = await pipe.execute()
        opens_ms = {lane: int(until_us or 0) // 1000 for lane, until_us in zip(lanes, found, strict=False)}
        for each, state in zip(stuck, found[len(lanes) :], strict=True):
            lane = lane_of[each.record.job.route]
            if state is None or state in _OUT:
                continue
            if lane in paused:
                each.meets(_paused(text(lane)))
            elif opens_ms[lane] > now_ms + _OPENS_SOON_MS:
                # A wall is believed in while its lane cools down. After that a job tries it, which may be this one.
                each.meets(_wall(LaneFault.model_validate_json(faults[lane]), (opens_ms[lane] - now_ms) / 1000))


def _paused(lane: str) -> Problem:
    return Problem(
        Kind.UNAVAILABLE,
        f"lane '{lane}' was paused; it goes on with `assistq lanes resume`",
        code="lane_paused",
        retry_after_s=_PAUSED_RETRY_S,
    )


def _wall(fault: LaneFault, retry_after_s: float) -> Problem:
    # Some providers quote the key that they refuse.
    reason = "the provider refuses our key" if fault.code is Code.KEY_REFUSED else fault.reason
    return Problem(
        kind_of(fault.code), f"{reason}; `assistq lanes` shows it", code=fault.code, retry_after_s=retry_after_s
    )
