"""What calls cost, and how much a workspace may spend: the part of the lanes file that is about money.

```yaml
prices:                       # per million tokens, in whatever currency
  - {provider: api.openai.com, model: "gpt-4.1*", prompt: 2.00, completion: 8.00}
workspaces:
  acme: {spend_cap: 50.00, spend_cap_period: month}
```
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas.chat import Usage
from schemas.lane_pattern import LanePattern
from schemas.money import MOST, nanos

Period = Literal["day", "month", "total"]

_PER = 1_000_000
# As a number of YAML: what schemas.money takes.
Money = Annotated[float, Field(ge=0, le=MOST, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True)
class Price:
    """What a million tokens cost, in nanos (schemas/money.py)."""

    prompt_nano: int
    completion_nano: int

    def of(self, usage: Usage) -> int:
        """Return what these tokens cost, in nanos, rounded up."""
        exact = usage.prompt_tokens * self.prompt_nano + usage.completion_tokens * self.completion_nano
        return -(-exact // _PER)


class PriceEntry(LanePattern):
    """One entry of `prices`: which lanes it is for, and what a million tokens cost there."""

    prompt: Money
    completion: Money

    @property
    def price(self) -> Price:
        """Return it in nanos."""
        return Price(prompt_nano=nanos(self.prompt), completion_nano=nanos(self.completion))


class SpendCap(BaseModel):
    """What a workspace may spend in each `period` (UTC); `nano` None is any amount, which is counted all the same."""

    model_config = ConfigDict(frozen=True)

    nano: int | None = None
    period: Period = "month"

    def period_at(self, now: datetime) -> str:
        """Return the name of the period that a time with a zone lies in, such as 2026-11."""
        match self.period:
            case "day":
                return f"{now:%Y-%m-%d}"
            case "month":
                return f"{now:%Y-%m}"
            case "total":
                return "total"
