"""What a lane may do under its provider's quota."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Shape = Literal["smooth", "bucket", "window"]


class LaneLimits(BaseModel):
    """The limits of one lane.

    `rpm` and `tpm` are requests and tokens (prompt and completion) a minute. `shape` is how the provider counts:

    * `bucket`: what is used flows back evenly, into a bucket that holds `burst_s` seconds of the limit;
    * `window`: no more than the limit in any 60 s, however it is spread;
    * `smooth`: we do not know; evenly, `burst_s` seconds of the limit at once, never more than the
      limit in any 60 s, which neither of the others refuses.

    `max_concurrency` bounds the calls in flight, None is any number. `headroom` is the share
    of `rpm` and `tpm` that is left to others.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rpm: int = Field(default=500, ge=1)
    tpm: int = Field(default=60_000, ge=1)
    burst_s: float = Field(default=1.0, gt=0, le=60, allow_inf_nan=False)
    shape: Shape = "smooth"
    max_concurrency: int | None = Field(default=None, ge=1)
    headroom: float = Field(default=0.0, ge=0, lt=1, allow_inf_nan=False)

    @property
    def usable_rpm(self) -> int:
        """Return the requests a minute that are ours, at least one."""
        return max(1, int(self.rpm * (1 - self.headroom)))

    @property
    def usable_tpm(self) -> int:
        """Return the tokens a minute that are ours, at least one."""
        return max(1, int(self.tpm * (1 - self.headroom)))
