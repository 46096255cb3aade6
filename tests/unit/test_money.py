"""Money is whole nanos: exact, and what is no amount is refused."""

from __future__ import annotations

from decimal import Decimal

import pytest

from schemas import InputError, Usage
from schemas.money import MOST, NANOS, amount, nanos
from schemas.prices import Price


@pytest.mark.parametrize(
    ("given", "of_nanos", "shown"),
    [
        (0, 0, "0.00"),
        (50, 50 * NANOS, "50.00"),
        (0.1, 100_000_000, "0.10"),
        ("0.000000001", 1, "0.000000001"),
        (Decimal("2.625"), 2_625_000_000, "2.625"),
        (MOST, MOST * NANOS, "9000000.00"),
    ],
)
def test_an_amount_is_exact_there_and_back(given: object, of_nanos: int, shown: str) -> None:
    assert nanos(given) == of_nanos  # type: ignore[arg-type]
    assert amount(of_nanos) == shown
    assert nanos(amount(of_nanos)) == of_nanos


@pytest.mark.parametrize("given", [-0.01, MOST + 1, "NaN", "Infinity", "ten", ""])
def test_what_is_no_amount_is_refused(given: object) -> None:
    with pytest.raises(InputError, match="is no amount of money; say a number from 0 to 9,000,000"):
        nanos(given)  # type: ignore[arg-type]


def test_a_cost_is_rounded_up_to_the_nano_and_the_sums_of_millions_are_exact() -> None:
    price = Price(prompt_nano=nanos("0.15"), completion_nano=nanos("0.6"))
    assert price.of(Usage(prompt_tokens=1_000_000, completion_tokens=1_000_000)) == nanos("0.75")
    assert price.of(Usage(prompt_tokens=1)) == 150
    assert Price(prompt_nano=1, completion_nano=0).of(Usage(prompt_tokens=1)) == 1
    assert price.of(Usage()) == 0
