"""Dates by the patterns of date-fns, in English.

The names of months, days, quarters and eras come from Babel, by the tokens of Unicode (LDML) that
date-fns shares. Numbers and the tokens that it does not share are written here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import Any, Final

from babel import Locale
from babel.dates import parse_pattern

DEFAULT_PATTERN: Final = "MMMM dd, yyyy"

_ENGLISH: Final = Locale("en", "US")
_LONG = re.compile(r"P+p+|P+|p+|''|'(?:''|[^'])+(?:'|$)|.")
_PIECE = re.compile(r"[yYQqMLwIdDecihHKkms]o|([A-Za-z])\1*|''|'(?:''|[^'])+(?:'|$)|.")
# date-fns refuses them, because they are mostly mistaken for dd, yy and yyyy.
_REFUSED: Final = frozenset({"D", "DD", "YY", "YYYY"})
_LONG_DATES: Final = ("MM/dd/yyyy", "MMM d, y", "MMMM do, y", "EEEE, MMMM do, y")
_LONG_TIMES: Final = ("h:mm a", "h:mm:ss a", "h:mm:ss a z", "h:mm:ss a zzzz")
_JOINED: Final = ("{}, {}", "{}, {}", "{} 'at' {}", "{} 'at' {}")
# Letters of date-fns that are names when they stand often enough, and the letters under which LDML has the same names.
_NAMES: Final = {"M": "M", "L": "L", "Q": "Q", "q": "q", "E": "E", "e": "E", "c": "E", "i": "E", "G": "G"}

_ISO_CHARACTERS = re.compile(r"[0-9T :.,+Z-]+|\d{4}-?W[0-9T :.,+Z-]+")
# Forms that `fromisoformat` does not know.
_YEAR_OR_MONTH = re.compile(r"\d{4}(?:-\d\d)?")
_ORDINAL_DATE = re.compile(r"(\d{4})-?(\d{3})")


def parsed(value: Any, *, zone: tzinfo | None) -> datetime | None:
    """Return the time that an ISO 8601 text or a number (ms since the epoch) means, in the zone; None if it is bad.

    A text without an offset is a time of the zone.
    """
    try:
        if isinstance(value, str):
            when = _parsed_iso(value)
            return when.replace(tzinfo=zone) if when.tzinfo is None else when.astimezone(zone)
        if isinstance(value, int | float) and type(value) in (int, float):
            return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=value)).astimezone(zone)
    except (ValueError, OverflowError):
        return None
    return None


def _parsed_iso(value: str) -> datetime:
    if not _ISO_CHARACTERS.fullmatch(value):
        raise ValueError("not ISO 8601")
    value = value.removesuffix("T")
    if _YEAR_OR_MONTH.fullmatch(value):
        return datetime.fromisoformat(f"{value}-01" if "-" in value else f"{value}-01-01")
    ordinal = _ORDINAL_DATE.fullmatch(value)
    if ordinal is None:
        return datetime.fromisoformat(value)
    first = datetime(int(ordinal[1]), 1, 1)  # noqa: DTZ001 - the caller gives the zone
    day = first + timedelta(days=int(ordinal[2]) - 1)
    if day.year != first.year:
        raise ValueError("the year has no such day")
    return day


def formatted(when: datetime, pattern: str) -> str:
    """Return the time by a date-fns pattern; the empty string if date-fns would refuse the pattern.

    A week that begins before the year 1 is refused too.
    """
    long = "".join(_long(part) for part in _LONG.findall(pattern))
    pieces = []
    for match in _PIECE.finditer(long):
        try:
            piece = _written(when, match[0])
        except OverflowError:
            return ""
        if piece is None:
            return ""
        pieces.append(piece)
    return "".join(pieces)


def _written(when: datetime, piece: str) -> str | None:
    """Return what a piece of a pattern becomes; None if date-fns does not know it."""
    letter, count = piece[0], len(piece)
    if letter == "'":
        return "'" if piece == "''" else piece[1:].removesuffix("'").replace("''", "'")
    if not (letter.isascii() and letter.isalpha()):
        return piece
    if piece in _REFUSED:
        return None
    if piece[1:] == "o" and letter in _NUMBERS:
        return _ordinal(_NUMBERS[letter](when))
    if letter in _NAMES and (count > 2 or letter in "EG"):
        return _name(when, _NAMES[letter], count)
    own = _OWN.get(letter)
    if own is not None:
        return own(when, count)
    return f"{_NUMBERS[letter](when):0{count}d}" if letter in _NUMBERS else None


def _name(when: datetime, letter: str, count: int) -> str:
    """Return a name; for more letters than there are widths, it is the wide one."""
    width = max(count, 3)
    if width > (6 if letter == "E" else 5):
        width = 4
    return parse_pattern(letter * width).apply(when, _ENGLISH)


def _long(part: str) -> str:
    """Return the pattern that `P`, `p` or both of them stand for."""
    if part[0] not in "Pp":
        return part
    dates, times = part.count("P"), part.count("p")
    date_pattern, time_pattern = _LONG_DATES[min(dates, 4) - 1], _LONG_TIMES[min(times, 4) - 1]
    if not dates:
        return time_pattern
    return _JOINED[min(dates, 4) - 1].format(date_pattern, time_pattern) if times else date_pattern


def _ordinal(number: int) -> str:
    if 10 <= number % 100 <= 20:
        return f"{number}th"
    return f"{number}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th') }"


def _week(when: datetime) -> tuple[int, int]:
    """Return year and number of the week as in the United States: it begins on Sunday, the first has January 1st."""
    sunday = _sunday(when.date())
    year = (sunday + timedelta(days=6)).year
    return year, (sunday - _sunday(date(year, 1, 1))).days // 7 + 1


def _sunday(day: date) -> date:
    return day - timedelta(days=day.isoweekday() % 7)


def _timestamp_ms(when: datetime) -> int:
    return (when - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


_NUMBERS: Final[Mapping[str, Callable[[datetime], int]]] = {
    "y": lambda when: when.year,
    "Y": lambda when: _week(when)[0],
    "Q": lambda when: (when.month + 2) // 3,
    "q": lambda when: (when.month + 2) // 3,
    "M": lambda when: when.month,
    "L": lambda when: when.month,
    "w": lambda when: _week(when)[1],
    "I": lambda when: when.isocalendar().week,
    "d": lambda when: when.day,
    "D": lambda when: when.timetuple().tm_yday,
    "e": lambda when: when.isoweekday() % 7 + 1,
    "c": lambda when: when.isoweekday() % 7 + 1,
    "i": lambda when: when.isoweekday(),
    "h": lambda when: when.hour % 12 or 12,
    "H": lambda when: when.hour,
    "K": lambda when: when.hour % 12,
    "k": lambda when: when.hour or 24,
    "m": lambda when: when.minute,
    "s": lambda when: when.second,
    "R": lambda when: when.isocalendar().year,
    "u": lambda when: when.year,
    "t": lambda when: int(_timestamp_ms(when) / 1000),
    "T": _timestamp_ms,
}


def _half_day(when: datetime, count: int) -> str:
    half = "p" if when.hour >= 12 else "a"
    if count <= 2:
        return f"{half}m".upper()
    return {3: f"{half}m", 5: half}.get(count, f"{half}.m.")


def _half_day_or_noon(when: datetime, count: int) -> str:
    if when.hour % 12:
        return _half_day(when, count)
    if count == 5:
        return "n" if when.hour else "mi"
    return "noon" if when.hour else "midnight"


def _part_of_day(when: datetime, _count: int) -> str:
    for hour, name in ((17, "in the evening"), (12, "in the afternoon"), (4, "in the morning")):
        if when.hour >= hour:
            return name
    return "at night"


def _fraction(when: datetime, count: int) -> str:
    return f"{when.microsecond // 1000:03d}".ljust(count, "0")[:count]


def _offset(when: datetime, *, colon: str, hours_only: bool = False) -> str:
    minutes = _offset_min(when)
    hours, rest = divmod(abs(minutes), 60)
    sign = "-" if minutes < 0 else "+"
    return f"{sign}{hours:02d}" if hours_only and not rest else f"{sign}{hours:02d}{colon}{rest:02d}"


def _iso_offset(when: datetime, count: int) -> str:
    return _offset(when, colon="" if count in (1, 2, 4) else ":", hours_only=count == 1)


def _iso_offset_or_z(when: datetime, count: int) -> str:
    return _iso_offset(when, count) if _offset_min(when) else "Z"


def _gmt(when: datetime, count: int) -> str:
    if count > 3:
        return f"GMT{_offset(when, colon=':')}"
    minutes = _offset_min(when)
    hours, rest = divmod(abs(minutes), 60)
    return f"GMT{'-' if minutes < 0 else '+'}{hours}" + (f":{rest:02d}" if rest else "")


def _offset_min(when: datetime) -> int:
    return int((when.utcoffset() or timedelta()).total_seconds()) // 60


_OWN: Final[Mapping[str, Callable[[datetime, int], str]]] = {
    "y": lambda when, count: f"{when.year % 100 if count == 2 else when.year:0{count}d}",
    "a": _half_day,
    "b": _half_day_or_noon,
    "B": _part_of_day,
    "S": _fraction,
    "X": _iso_offset_or_z,
    "x": _iso_offset,
    "O": _gmt,
    "z": _gmt,
}
