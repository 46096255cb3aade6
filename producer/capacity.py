"""How many jobs the workers that are alive can run at once."""

from __future__ import annotations

from collections.abc import Iterable

from producer.answers import text


def live_capacity(told: Iterable[bytes | str], now_ms: int) -> int:
    """Return the sum of what the processes told (the values of names.WORKERS) that have not expired."""
    numbers = [[int(number) for number in text(value).split()] for value in told]
    return sum(places for places, expires_ms in numbers if expires_ms > now_ms)
