"""What the flow asks of a limiter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from schemas.lane import Lane
from schemas.outcome import Code
from schemas.quota_told import QuotaTold


@dataclass(frozen=True, slots=True)
class Granted:
    """The call may be made in `wait_s`; one request and `tokens` are reserved for it.

    `second` is where the limiter keeps the reservation: its turn, on the limiter's clock.
    """

    wait_s: float
    tokens: int
    second: int = 0


@dataclass(frozen=True, slots=True)
class Later:
    """Nothing was reserved: the turn would come only in `wait_s`, which is beyond the horizon."""

    wait_s: float


@dataclass(frozen=True, slots=True)
class TooLarge:
    """The call needs more tokens than the lane has in a minute and can never be made."""

    limit_tokens: int


Answer = Granted | Later | TooLarge


class Limiter(Protocol):
    """Reserves requests and tokens of a lane, in the order of asking."""

    async def reserve(self, lane: Lane, *, tokens: int) -> Answer:
        """Ask for one request of `tokens` tokens (prompt and completion)."""
        ...

    async def settle(self, lane: Lane, grant: Granted, *, used_tokens: int, fault_over: bool = True) -> None:
        """Tell what a call that was sent really used; also ends the lane's fault, unless told otherwise."""
        ...

    async def cancel(self, lane: Lane, grant: Granted) -> None:
        """Give back a reservation whose call was certainly not sent."""
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
