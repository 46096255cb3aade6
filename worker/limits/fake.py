"""A limiter for unit tests: answers from a list, then grants everything."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from schemas.lane import Lane
from schemas.outcome import Code
from schemas.quota_told import QuotaTold
from worker.limits.base import Answer, Granted


class FakeLimiter:
    """Remembers what it was told, as (verb, lane, amount), and which of its grants have not ended."""

    def __init__(self, script: Iterable[Answer] = ()) -> None:
        """Take the answers to the first reservations."""
        self._script = iter(script)
        self._numbers = itertools.count(1)
        self.told: list[tuple[str, Lane, float]] = []
        self.in_flight: dict[str, Granted] = {}

    async def reserve(self, lane: Lane, *, tokens: int, owner: str) -> Answer:
        """Return the next answer, or a grant without a wait."""
        self.told.append(("reserve", lane, tokens))
        answer = next(self._script, None) or Granted(id=f"{owner}.{next(self._numbers)}", tokens=tokens)
        if isinstance(answer, Granted):
            self.in_flight[answer.id] = answer
        return answer

    async def settle(self, lane: Lane, grant: Granted, *, used_tokens: int, fault_over: bool = True) -> None:  # noqa: ARG002 - the protocol's signature
        """Remember the correction, once."""
        if self.in_flight.pop(grant.id, None):
            self.told.append(("settle", lane, used_tokens - grant.tokens))

    async def cancel(self, lane: Lane, grant: Granted) -> None:
        """Remember what was given back, once."""
        if self.in_flight.pop(grant.id, None):
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

    async def expire(self) -> int:
        """Find nobody dead."""
        return 0
