"""Money as whole nanos: billionths of the currency unit in which prices are configured.

Prices are told per million tokens, so one token at 0.15 a million is 150 nanos. Sums of whole numbers
are exact, in Redis's scripts too (up to 2**53 nanos, some nine million units).
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation

from schemas.errors import InputError

NANOS = 1_000_000_000
# Beyond it Redis's scripts would round.
MOST = 9_000_000


def nanos(amount: Decimal | float | str) -> int:
    """Return an amount of the currency unit in nanos, rounded; InputError for what is no amount."""
    try:
        exact = Decimal(str(amount))
    except InvalidOperation:
        exact = Decimal("NaN")
    if not exact.is_finite() or not 0 <= exact <= MOST:
        raise InputError(f"{amount} is no amount of money", mend=f"say a number from 0 to {MOST:,}")
    return int((exact * NANOS).to_integral_value())


def amount(of_nanos: int) -> str:
    """Return nanos as an amount for people: at least two decimals, no more than are needed."""
    whole, rest = divmod(of_nanos, NANOS)
    return f"{whole}.{f'{rest:09d}'.rstrip('0'):0<2}"
