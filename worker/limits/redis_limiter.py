"""The limiter that all workers share, in Redis, on the server's clock."""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib import resources

from redis.asyncio import Redis

from schemas import names
from schemas.lane import Lane, LaneFault
from schemas.outcome import Code
from schemas.quota_told import QuotaTold
from worker.errors import redis_away
from worker.limits.base import Answer, Granted, Later, TooLarge

# A turn further away than this is not reserved: the job waits in its line instead of on a thread.
HORIZON_S = 5.0
# A minute's limit comes back in 61 s: any 60 s touch at most so many whole seconds, which
# reserve.lua counts by, and at this pace an even load never meets that guard.
REFILL_S = 61


@dataclass(frozen=True, slots=True)
class LaneLimits:
    """What a lane may do: requests and tokens a minute, and the seconds of them that may come at once."""

    rpm: int
    tpm: int
    burst_s: float

    @property
    def burst_us(self) -> int:
        """Return the burst in the buckets' time, in which a minute's limit is worth REFILL_S."""
        return round(self.burst_s * 1e6 * REFILL_S / 60)

    @property
    def request_us(self) -> float:
        """Return the microseconds after which a request has come back."""
        return REFILL_S * 1e6 / self.rpm

    @property
    def token_us(self) -> float:
        """Return the microseconds after which a token has come back."""
        return REFILL_S * 1e6 / self.tpm


class RedisLimiter:
    """A token bucket a lane for requests and one for tokens, and a guard of the rolling minute (reserve.lua)."""

    def __init__(self, redis: Redis, limits: LaneLimits) -> None:
        """Apply the same limits to every lane."""
        self._redis = redis
        self._limits = limits
        self._reserve = redis.register_script(_lua("reserve.lua"))
        self._settle = redis.register_script(_lua("settle.lua"))
        self._cool_down = redis.register_script(_lua("cool_down.lua"))

    async def reserve(self, lane: Lane, *, tokens: int) -> Answer:
        """Ask for one request of `tokens` tokens."""
        limits = self._limits
        paces = [limits.request_us, limits.token_us]
        args = [limits.rpm, limits.tpm, limits.burst_us, tokens, int(HORIZON_S * 1e6), *paces]
        with redis_away():
            answer, wait_ms, second = await self._reserve(keys=[names.limit(lane.key)], args=args)
        if answer < 0:
            return TooLarge(limit_tokens=limits.tpm)
        wait_s = wait_ms / 1000
        return Granted(wait_s=wait_s, tokens=tokens, second=second) if answer else Later(wait_s=wait_s)

    async def settle(self, lane: Lane, grant: Granted, *, used_tokens: int, fault_over: bool = True) -> None:
        """Correct the reservation to what was used."""
        await self._correct(lane, grant, tokens=used_tokens - grant.tokens, requests=0, fault_over=fault_over)

    async def cancel(self, lane: Lane, grant: Granted) -> None:
        """Give the request and its tokens back."""
        await self._correct(lane, grant, tokens=-grant.tokens, requests=-1, fault_over=False)

    async def cool_down(self, lane: Lane, *, delay_s: float) -> None:
        """Grant nothing of the lane for this long."""
        with redis_away():
            await self._cool_down(keys=[names.limit(lane.key)], args=[int(delay_s * 1000)])

    async def believe(self, lane: Lane, told: QuotaTold) -> None:
        """Do nothing: this limiter keeps to its own limits, and learns from a 429 only."""

    async def fault(self, lane: Lane, *, code: Code, reason: str) -> None:
        """Record why the lane stands still; a fault of the same code keeps its beginning."""
        # Two workers that write at once count one meeting less, which nobody decides by.
        with redis_away():
            raw = await self._redis.hget(names.FAULTS, lane.key)
        before = LaneFault.model_validate_json(raw) if raw else None
        same = before is not None and before.code is code
        fault = LaneFault(
            workspace=lane.workspace,
            code=code,
            reason=reason,
            since_ms=before.since_ms if same and before else int(time.time() * 1000),
            count=before.count + 1 if same and before else 1,
        )
        with redis_away():
            await self._redis.hset(names.FAULTS, lane.key, fault.model_dump_json())

    async def _correct(self, lane: Lane, grant: Granted, *, tokens: int, requests: int, fault_over: bool) -> None:
        paces = [self._limits.request_us, self._limits.token_us]
        with redis_away():
            await self._settle(
                keys=[names.limit(lane.key), names.FAULTS],
                args=[grant.second, tokens, requests, *paces, lane.key if fault_over else ""],
            )


def _lua(name: str) -> str:
    return resources.files("worker.limits").joinpath(name).read_text("utf-8")
