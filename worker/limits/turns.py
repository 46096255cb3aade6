"""The limiter's scripts as functions: each is one call, atomic, and waits for nothing.

`turns.lua` says what Redis holds.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from importlib import resources
from typing import Any

from redis.asyncio import Redis

from schemas import names
from schemas.lane import Lane
from schemas.lane_limits import LaneLimits
from schemas.quota_told import QuotaTold
from schemas.scripts import joined
from worker.errors import redis_away

# As in turns.lua: calls reach the provider, and end there, this much earlier or later than our clock says.
JITTER_S = 0.25
LANES_AT_ONCE = 200
_KNOWN_LIMITS = 10_000
_MINUTE_S = 60.0


class Reply(IntEnum):
    """What reserve.lua answers with."""

    TOO_LARGE = -1
    WAIT = 0
    GRANTED = 1
    LATER = 2


@dataclass(frozen=True, slots=True)
class Asked:
    """The answer to a question for a turn; `amount` is a wait in us, or of TOO_LARGE the tokens of a minute."""

    reply: Reply
    amount: int

    @property
    def wait_s(self) -> float:
        """Return the wait."""
        return self.amount / 1e6


class Turns:
    """The scripts, in the name of one process."""

    def __init__(self, redis: Redis, *, process: str, hold_s: float) -> None:
        """Take a call for lost when it was not ended within `hold_s`."""
        self._process = process
        self._hold_s = hold_s
        # By identity: to hash so many fields takes longer than to pack them.
        self._packed: dict[int, tuple[LaneLimits, bytes]] = {}
        self._reserve, self._settle, self._cool_down, self._believe, self._expire = (
            _Script(redis, source(name)) for name in ("reserve", "settle", "cool_down", "believe", "expire")
        )

    async def ask(self, lane: Lane, limits: LaneLimits, *, ticket: str, tokens: int, owner: str) -> Asked:
        """Ask for a turn, ask again, or confirm a grant; the same ticket is the same question."""
        packed = self._pack(limits)
        with redis_away():
            reply, amount = await self._reserve(lane.key, ticket, owner, self._process, tokens, packed)
        return Asked(Reply(reply), amount)

    async def settle(self, lane: Lane, ticket: str, *, used_tokens: int, late_s: float = 0.0, fault_over: bool) -> bool:
        """Correct a reservation to what was used, and end it; False if there is none (any more).

        `late_s` is how much later than its turn the call may have been sent.
        """
        late_us = round(late_s * 1e6)
        with redis_away():
            return bool(await self._settle(lane.key, ticket, used_tokens, int(fault_over), late_us))

    async def give_back(self, lane: Lane, ticket: str) -> bool:
        """Take back the question, or a reservation that was certainly not sent; False if there is none (any more)."""
        with redis_away():
            return bool(await self._settle(lane.key, ticket, -1, 0, 0))

    async def cool_down(self, lane: Lane, *, delay_s: float) -> None:
        """Grant nothing for this long."""
        with redis_away():
            await self._cool_down(lane.key, round(delay_s * 1e6))

    async def believe(self, lane: Lane, limits: LaneLimits, told: QuotaTold) -> float:
        """Take in the provider's word; return for how many seconds nothing is granted because of it, else 0."""
        kinds = (
            (told.limit_requests, told.remaining_requests, told.reset_requests_s),
            (told.limit_tokens, told.remaining_tokens, told.reset_tokens_s),
        )
        args: list[str | float] = [lane.key]
        for limit, remaining, reset_s in kinds:
            args += [
                "" if limit is None else limit * (1 - limits.headroom),
                "" if remaining is None else remaining,
                "" if reset_s is None else round(reset_s * 1e6),
            ]
        with redis_away():
            return int(await self._believe(*args)) / 1e6

    async def expire(self) -> int:
        """Free what dead processes left, of the lanes whose turn it is to be looked at."""
        with redis_away():
            return int(await self._expire(LANES_AT_ONCE))

    def _pack(self, limits: LaneLimits) -> bytes:
        known = self._packed.get(id(limits))
        if known is None:
            if len(self._packed) >= _KNOWN_LIMITS:
                self._packed.clear()
            known = self._packed[id(limits)] = (limits, pack_limits(limits, hold_s=self._hold_s))
        return known[1]


class _Script:
    """A script that takes no keys."""

    def __init__(self, redis: Redis, text: str) -> None:
        self._script = redis.register_script(text)

    async def __call__(self, *args: str | bytes | float) -> Any:
        return await self._script(keys=[], args=args)


def channel(process: str) -> str:
    """Return the channel on which a process hears of its grants."""
    return f"{names.PREFIX}:turns:{process}"


def pack_limits(limits: LaneLimits, *, hold_s: float) -> bytes:
    """Return the limits as turns.lua unpacks them."""
    pace_s = {"smooth": _MINUTE_S, "bucket": _MINUTE_S, "window": 0.0}[limits.shape]
    # At least one request is had at once, whatever this says.
    burst_s = max(0.0, limits.burst_s - JITTER_S) * pace_s / _MINUTE_S
    numbers = (
        limits.usable_rpm,
        limits.usable_tpm,
        round(burst_s * 1e6),
        round(pace_s * 1e6),
        limits.shape != "bucket",
        limits.max_concurrency or 0,
        round(hold_s * 1e6),
    )
    return struct.pack("<7d", *numbers)


def source(name: str) -> str:
    """Return a script's text; the prelude of all comes first."""
    package = resources.files("worker.limits")
    return joined(*(package.joinpath(f"{part}.lua").read_text("utf-8") for part in ("turns", "grants", name)))
