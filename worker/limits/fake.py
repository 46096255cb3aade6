"""A limiter for unit tests: answers from a list, then grants everything."""

from __future__ import annotations

from collections.abc import Iterable

from schemas.lane import Lane
from schemas.outcome import Code
from schemas.quota_told import QuotaTold
from worker.limits.base import Answer, Granted


class FakeLimiter:
    """Remembers what it was told, as (verb, lane, amount)."""

    def __init__(self, script: Iterable[Answer] = ()) -> None:
        """Take the answers to the first reservations."""
        self._script = iter(script)
        self.told: list[tuple[str, Lane, float]] = []

    async def reserve(self, lane: Lane, *, tokens: int) -> Answer:
        """Return the next answer, or a grant without a wait."""
        self.told.append(("reserve", lane, tokens))
        return next(self._script, Granted(wait_s=0.0, tokens=tokens))

    async def settle(self, lane: Lane, grant: Granted, *, used_tokens: int, fault_over: bool = True) -> None:  # noqa: ARG002 - the protocol's signature
        """Remember the correction."""
        self.told.append(("settle", lane, used_tokens - grant.tokens))

    async def cancel(self, lane: Lane, grant: Granted) -> None:
        """Remember what was given back."""
        self.told.append(("cancel", lane, grant.tokens))

    async def cool_down(self, lane: Lane, *, delay_s: float) -> None:
        """Remember the cool-down."""
        self.told.append(("cool_down", lane, delay_s))

    async def believe(self, lane: Lane, told: QuotaTold) -> None:
        """Remember what is left of the requests, as far as it was told."""
        self.told.append(("believe", lane, -1 if told.remaining_requests is None else told.remaining_requests))

    async def fault(self, lane: Lane, *, code: Code, reason: str) -> None:  # noqa: ARG002 - the protocol's signature
        """Remember that the lane has a fault."""
        self.told.append((f"fault {code}", lane, 0))
