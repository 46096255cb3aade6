"""What a call may cost, and whether the caps of its batch and its workspace have room for it.

The ledger is in Redis; whoever takes a job out of a worker's hands ends its reservation (reservation.lua).
Only jobs under a cap ask it: what others cost is counted as their replies are journaled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from redis.asyncio import Redis

from schemas import names
from schemas.chat import Usage
from schemas.lane import Lane
from schemas.prices import Price, SpendCap
from schemas.scripts import read_script
from worker.errors import redis_away
from worker.limits.learned import Expected
from worker.queue.queue import Claimed, StaleJobError

# So many jobs of a batch in a row that its cap has no room for end the others that wait, without a look at each.
REFUSED_IN_A_ROW = 32

Scope = Literal["batch", "workspace"]


@dataclass(frozen=True, slots=True)
class Quote:
    """What a call may cost: `most_nano`, of which `reserved` says that it must be reserved; paid by `account`.

    Nobody knows where there is no `price`. `cap` is the workspace's.
    """

    lane: Lane
    price: Price | None
    most_nano: int
    account: str
    cap: SpendCap
    capped: bool

    @property
    def reserved(self) -> bool:
        """Return whether the call needs a reservation: what costs nothing needs none."""
        return self.capped and self.most_nano > 0

    def cost(self, usage: Usage | None) -> int:
        """Return what a call cost; of a provider that counts nothing, the most that it may have."""
        if self.price is None:
            return 0
        return self.price.of(usage) if usage is not None and usage.total_tokens else self.most_nano


@dataclass(frozen=True, slots=True)
class NoPrice:
    """There is a cap, and no price for the lane: the cap would not hold."""

    lane: Lane


@dataclass(frozen=True, slots=True)
class Held:
    """Calls in flight hold what is left of the cap, and may give some of it back."""

    scope: Scope


@dataclass(frozen=True, slots=True)
class Over:
    """What is spent leaves no room for a call that may cost `most_nano`."""

    scope: Scope
    most_nano: int
    spent_nano: int
    cap_nano: int


class Spending:
    """Quotes calls and reserves for them; bound to one event loop."""

    def __init__(
        self,
        redis: Redis,
        *,
        price_of: Callable[[Lane], Price | None],
        cap_of: Callable[[str], SpendCap],
        now: Callable[[], datetime],
    ) -> None:
        """Take prices and caps as they are configured; `redis` must retry by itself while the server is away."""
        self._price_of = price_of
        self._cap_of = cap_of
        self._now = now
        self._reserve = redis.register_script(read_script("worker.spend", "reserve.lua"))
        self._send = redis.register_script(read_script("worker.spend", "send.lua"))
        self._free = redis.register_script(read_script("worker.spend", "free.lua"))

    def quote(self, claimed: Claimed, lane: Lane, expected: Expected, *, max_tokens: int | None) -> Quote:
        """Return what a call of the job in this lane may cost."""
        price, cap = self._price_of(lane), self._cap_of(lane.workspace)
        return Quote(
            lane=lane,
            price=price,
            most_nano=0 if price is None else price.of(expected.at_most(max_tokens=max_tokens)),
            account=names.spend(lane.workspace, cap.period_at(self._now())),
            cap=cap,
            capped=claimed.capped or cap.nano is not None,
        )

    async def reserve(self, claimed: Claimed, quote: Quote) -> NoPrice | Held | Over | None:
        """Reserve what the call may cost under both caps, or return what stands against it; raises StaleJobError."""
        if quote.capped and quote.price is None:
            return NoPrice(quote.lane)
        if not quote.reserved:
            return None
        cap = "" if quote.cap.nano is None else quote.cap.nano
        args: list[str | int] = [claimed.id, claimed.epoch, quote.most_nano, quote.account, cap, REFUSED_IN_A_ROW]
        with redis_away():
            answer, *rest = [_text(value) for value in await self._reserve(keys=[], args=args)]
        if answer == "granted":
            return None
        if answer == "stale":
            raise StaleJobError(claimed.id, at="budget")
        scope: Scope = "batch" if rest[0] == "batch" else "workspace"
        if answer == "wait":
            return Held(scope)
        return Over(scope, most_nano=quote.most_nano, spent_nano=int(rest[1]), cap_nano=int(rest[2]))

    async def send(self, claimed: Claimed, quote: Quote) -> None:
        """Note that the call leaves now; raises StaleJobError if the reservation was ended, as after a pause."""
        if not quote.reserved:
            return
        with redis_away():
            noted = await self._send(keys=[names.job(claimed.id)], args=[claimed.epoch])
        if not noted:
            raise StaleJobError(claimed.id, at="send")

    async def free(self, claimed: Claimed, quote: Quote) -> None:
        """End the reservation of a call that was certainly not charged."""
        if quote.reserved:
            with redis_away():
                await self._free(keys=[], args=[claimed.id, claimed.epoch])


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
