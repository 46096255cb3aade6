"""The limiter that all workers share, in Redis, on the server's clock."""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib import resources

from redis.asyncio import Redis

from schemas import names
from schemas.lane import Lane, LaneFault
from schemas.outcome import Code
from worker.errors import redis_away
from worker.limits.base import Answer, Granted, Later, TooLarge

# A turn further away than this is not reserved: the job waits in its line instead of on a thread.
HORIZON_S = 5.0


@dataclass(frozen=True, slots=True)
class LaneLimits:
    """What a lane may do: requests and tokens a minute, and the seconds of them that may come at once."""

    rpm: int
    tpm: int
    burst_s: float


class RedisLimiter:
    """A token bucket a lane for requests and one for tokens, reserved by one script (reserve.lua)."""

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
        args = [limits.rpm, limits.tpm, limits.burst_s, tokens, int(HORIZON_S * 1000)]
        with redis_away():
            answer, wait_ms = await self._reserve(keys=[names.limit(lane.key)], args=args)
        if answer < 0:
            return TooLarge(limit_tokens=limits.tpm)
        wait_s = wait_ms / 1000
        return Granted(wait_s=wait_s, tokens=tokens) if answer else Later(wait_s=wait_s)

    async def settle(self, lane: Lane, *, reserved_tokens: int, used_tokens: int) -> None:
        """Correct the reservation to what was used."""
        await self._correct(lane, tokens=used_tokens - reserved_tokens, requests_back=0, fault_over=True)

    async def cancel(self, lane: Lane, *, reserved_tokens: int) -> None:
        """Give the request and its tokens back."""
        await self._correct(lane, tokens=-reserved_tokens, requests_back=1, fault_over=False)

    async def cool_down(self, lane: Lane, *, delay_s: float) -> None:
        """Grant nothing of the lane for this long."""
        with redis_away():
            await self._cool_down(keys=[names.limit(lane.key)], args=[int(delay_s * 1000)])

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

    async def _correct(self, lane: Lane, *, tokens: int, requests_back: int, fault_over: bool) -> None:
        limits = self._limits
        with redis_away():
            await self._settle(
                keys=[names.limit(lane.key), names.FAULTS],
                args=[limits.tpm, limits.burst_s, tokens, lane.key if fault_over else "", requests_back, limits.rpm],
            )


def _lua(name: str) -> str:
    return resources.files("worker.limits").joinpath(name).read_text("utf-8")
