"""What an answer's headers say of the provider's limits: the one place for all providers.

| who                       | headers                                                         | reset is             |
|---------------------------|-----------------------------------------------------------------|----------------------|
| OpenAI, Azure, Groq       | `x-ratelimit-{limit,remaining,reset}-{requests,tokens}`         | `6m0s`, or seconds   |
| Anthropic                 | `anthropic-ratelimit-{requests,tokens}-{limit,remaining,reset}` | a time (RFC 3339)    |
| Anthropic, newer accounts | `anthropic-ratelimit-{input,output}-tokens-{remaining,reset}`   | a time               |
| many gateways             | `x-ratelimit-{limit,remaining,reset}`, taken as requests        | seconds, or an epoch |
| IETF's drafts             | `ratelimit-{limit,remaining,reset}`; `ratelimit: …;r=5;t=30`    | seconds              |

What makes no sense (a word, a negative or endless number) counts as not said.
"""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from schemas.quota_told import QuotaTold

RESET_MAX_S = 24 * 60 * 60.0

# An epoch from here on is one of milliseconds.
_EPOCH_FROM_MS = 1e11
_NUMBER = re.compile(r"\d{1,12}(?:\.\d{1,9})?", re.ASCII)
_EPOCH = re.compile(r"\d{10,13}(?:\.\d{1,9})?", re.ASCII)
# Go's durations, as OpenAI writes them: 1h2m3.5s, 6m0s, 20ms.
_DURATION = re.compile(
    r"(?:(?P<d>\d{1,4})d)?(?:(?P<h>\d{1,6})h)?(?:(?P<m>\d{1,6})m)?"
    r"(?:(?P<s>\d{1,9}(?:\.\d{1,9})?)s)?(?:(?P<ms>\d{1,9}(?:\.\d{1,9})?)ms)?",
    re.ASCII,
)
_SECONDS = {"d": 86_400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
# `"default";r=50;t=30`, the parameters of a structured field.
_PARAMETER = re.compile(r";\s*([rt])=(\d{1,12})\b", re.ASCII)


@dataclass(frozen=True, slots=True)
class _Said:
    limit: int | None = None
    remaining: int | None = None
    reset_s: float | None = None

    def __bool__(self) -> bool:
        return not (self.limit is None and self.remaining is None and self.reset_s is None)


def told_by(headers: Mapping[str, str]) -> QuotaTold | None:
    """Return what the headers say of limits, None if they say nothing; never an error."""
    date = None
    found: dict[str, str] = {}
    for name, value in headers.items():
        lower = name.lower()
        if "ratelimit" in lower:
            found[lower] = value
        elif lower == "date":
            date = value
    if not found:
        return None
    now_s = _clock_of(date)
    requests = _openai(found, "requests", now_s) or _anthropic(found, "requests", now_s) or _plain(found, now_s)
    tokens = _openai(found, "tokens", now_s) or _anthropic(found, "tokens", now_s) or _tighter(found, now_s)
    if not requests and not tokens:
        return None
    return QuotaTold(
        limit_requests=requests.limit,
        remaining_requests=requests.remaining,
        reset_requests_s=requests.reset_s,
        limit_tokens=tokens.limit,
        remaining_tokens=tokens.remaining,
        reset_tokens_s=tokens.reset_s,
    )


def _openai(found: Mapping[str, str], what: str, now_s: float) -> _Said:
    names = (f"x-ratelimit-{part}-{what}" for part in ("limit", "remaining", "reset"))
    return _said(*map(found.get, names), now_s=now_s)


def _anthropic(found: Mapping[str, str], what: str, now_s: float) -> _Said:
    names = (f"anthropic-ratelimit-{what}-{part}" for part in ("limit", "remaining", "reset"))
    return _said(*map(found.get, names), now_s=now_s)


def _tighter(found: Mapping[str, str], now_s: float) -> _Said:
    """Return what is left of the tighter of Anthropic's two token limits; neither is one of all tokens."""
    sides = [_anthropic(found, f"{side}-tokens", now_s) for side in ("input", "output")]
    left = [side for side in sides if side.remaining is not None]
    if not left:
        return _Said()
    tighter = min(left, key=lambda side: side.remaining or 0)
    return _Said(remaining=tighter.remaining, reset_s=tighter.reset_s)


def _plain(found: Mapping[str, str], now_s: float) -> _Said:
    for prefix in ("x-ratelimit", "ratelimit"):
        names = (f"{prefix}-{part}" for part in ("limit", "remaining", "reset"))
        said = _said(*map(found.get, names), now_s=now_s)
        if said:
            # A limit of some window, which nobody names: only what is left of it, and when it ends, is of use.
            return replace(said, limit=None)
    structured = found.get("ratelimit", "")
    # Of several policies it is not said which is a minute's.
    if "," in structured:
        return _Said()
    parameters = dict(_PARAMETER.findall(structured))
    return _said(None, parameters.get("r"), parameters.get("t"), now_s=now_s)


def _said(limit: str | None, remaining: str | None, reset: str | None, *, now_s: float) -> _Said:
    return _Said(limit=_count(limit), remaining=_count(remaining), reset_s=_seconds(reset, now_s=now_s))


def _count(text: str | None) -> int | None:
    if text is None or not _NUMBER.fullmatch(text.strip()):
        return None
    return int(float(text))


def _seconds(text: str | None, *, now_s: float) -> float | None:
    """Read a duration, seconds, an epoch or a time; None unless it is 0 to a day ahead."""
    if text is None:
        return None
    seconds = _ahead(text.strip(), now_s)
    return seconds if seconds is not None and 0 <= seconds <= RESET_MAX_S else None


def _ahead(text: str, now_s: float) -> float | None:
    if _EPOCH.fullmatch(text):
        epoch = float(text)
        return (epoch / 1000 if epoch >= _EPOCH_FROM_MS else epoch) - now_s
    if _NUMBER.fullmatch(text):
        return float(text)
    duration = _DURATION.fullmatch(text)
    if text and duration is not None:
        return sum(float(value) * _SECONDS[unit] for unit, value in duration.groupdict().items() if value)
    try:
        moment = datetime.fromisoformat(text)
        # Without a zone it could be any time.
        return None if moment.tzinfo is None else moment.timestamp() - now_s
    except (ValueError, OverflowError):
        return None


def _clock_of(date: str | None) -> float:
    """Return the provider's own time, where it says one: its resets are times on its clock."""
    try:
        return time.time() if date is None else email.utils.parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):
        return time.time()
