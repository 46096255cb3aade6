"""How long something takes, as people write it: `30m`, `6h`, `2d`."""

from __future__ import annotations

import re
from datetime import timedelta

from schemas.errors import InputError

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_AT_MOST = timedelta(days=3650)


def duration(text: str) -> timedelta:
    """Return the time that a whole number and its unit say; InputError for what is none."""
    matched = re.fullmatch(r"([0-9]{1,9})([smhd])", text.strip())
    if matched is None:
        raise InputError(f"'{text}' is no duration", mend="write a whole number and a unit: 90s, 30m, 6h or 2d")
    found = timedelta(**{_UNITS[matched[2]]: int(matched[1])})
    if not timedelta() < found <= _AT_MOST:
        raise InputError(f"'{text}' must be more than nothing and at most {_AT_MOST.days}d")
    return found
