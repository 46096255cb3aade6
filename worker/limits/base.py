"""What the flow asks of a limiter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from schemas.lane import Lane
from schemas.outcome import Code
from schemas.quota_told import QuotaTold


@dataclass(frozen=True, slots=True)
class Granted:
    """The turn has come: the call may be made now, one request and `tokens` are reserved for it as `id`."""

    id: str
    tokens: int
    waited_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Later:
    """Nothing is reserved: too many stand before this one, it should ask again in `wait_s`."""

    wait_s: float


@dataclass(frozen=True, slots=True)
class TooLarge:
    """The call needs more tokens than the lane has in a minute and can never be made."""

    limit_tokens: int


@dataclass(frozen=True, slots=True)
class Stopped:
    """Nothing is reserved: a shutdown began before the turn came."""


Answer = Granted | Later | TooLarge | Stopped


class Limiter(Protocol):
    """Reserves requests and tokens of a lane, in the order of asking.

    All of it raises RedisAway, or its like, when what the limiter keeps cannot be reached.
    """

    async def reserve(self, lane: Lane, *, tokens: int, owner: str) -> Answer:
        """Wait for the turn of one request of `tokens` tokens (prompt and completion); `owner` is the job's id.

        Who is cancelled meanwhile gives up the place. A grant is to be settled or cancelled.
        """
        ...

    async def settle(self, lane: Lane, grant: Granted, *, used_tokens: int, fault_over: bool = True) -> None:
        """Tell what a call that was sent really used; also ends the lane's fault, unless told otherwise. Once."""
        ...

    async def cancel(self, lane: Lane, grant: Granted) -> None:
        """Give back a reservation whose call was certainly not sent. Once."""
        ...

    async def cool_down(self, lane: Lane, *, delay_s: float) -> None:
        """Grant nothing of the lane for this long; of two cool-downs the longer wins."""
        ...

    async def believe(self, lane: Lane, told: QuotaTold) -> None:
        """Take what the provider said of its limits into account."""
        ...

    async def fault(self, lane: Lane, *, code: Code, reason: str) -> None:
        """Record why the lane stands still, for people to see."""
        ...

    async def expire(self) -> int:
        """Free what dead processes left; return how many tickets and reservations that were."""
        ...
