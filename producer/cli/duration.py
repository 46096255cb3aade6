"""How long something takes, as people write it: `30m`, `6h`, `2d`."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import click

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_AT_MOST = timedelta(days=3650)


class Duration(click.ParamType[timedelta]):
    """A whole number and its unit, as a timedelta."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Return the time; a click error for what is none."""
        if isinstance(value, timedelta):
            return value
        matched = re.fullmatch(r"([0-9]{1,9})([smhd])", str(value).strip())
        if matched is None:
            self.fail(f"'{value}' is no duration; write a whole number and a unit: 90s, 30m, 6h or 2d", param, ctx)
        duration = timedelta(**{_UNITS[matched[2]]: int(matched[1])})
        if not timedelta() < duration <= _AT_MOST:
            self.fail(f"'{value}' must be more than nothing and at most {_AT_MOST.days}d", param, ctx)
        return duration


expiry_option = click.option(
    "--expires-in",
    type=Duration(),
    metavar="TIME",
    help="End what has not ended after this time as expired: 90s, 30m, 6h, 2d. [default: no end]",
)
