"""Durations as options of commands."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import click

from producer.duration import duration
from schemas.errors import InputError


class Duration(click.ParamType[timedelta]):
    """A whole number and its unit, as a timedelta."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Return the time; a click error for what is none."""
        if isinstance(value, timedelta):
            return value
        try:
            return duration(str(value))
        except InputError as exc:
            self.fail(str(exc), param, ctx)


expiry_option = click.option(
    "--expires-in",
    type=Duration(),
    metavar="TIME",
    help="End what has not ended after this time as expired: 90s, 30m, 6h, 2d. [default: no end]",
)
