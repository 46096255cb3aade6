"""What a workspace spent in a period."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict


class SpendStatus(BaseModel):
    """One account at one moment, in nanos (schemas/money.py).

    `period` is a day, a month (UTC) or `total`; `reserved_nano` is what calls in flight hold; without `cap_nano`
    there is no cap.
    """

    model_config = ConfigDict(frozen=True)

    workspace: str
    period: str
    spent_nano: int
    reserved_nano: int
    cap_nano: int | None

    @classmethod
    def from_fields(cls, key: str, fields: Mapping[str, str]) -> SpendStatus:
        """Read a hash of Redis (names.py, `aq:spend:<workspace>:<period>`)."""
        *_, workspace, period = key.split(":")
        return cls(
            workspace=workspace,
            period=period,
            spent_nano=int(fields.get("spent_nano", "0")),
            reserved_nano=int(fields.get("reserved_nano", "0")),
            cap_nano=int(fields["cap_nano"]) if "cap_nano" in fields else None,
        )
