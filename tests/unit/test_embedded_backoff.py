from __future__ import annotations

from producer.embedded.kept import Backoff


def test_the_pause_doubles_with_each_early_death_up_to_half_a_minute() -> None:
    backoff = Backoff()

    assert [backoff.after(lived_s=0.1) for _ in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]


def test_who_lived_a_minute_begins_with_the_first_pause_again() -> None:
    backoff = Backoff()
    for _ in range(6):
        backoff.after(lived_s=1)

    assert backoff.after(lived_s=60) == 0.5
    assert backoff.early_deaths == 1


def test_a_thousand_deaths_do_not_overflow_the_pause() -> None:
    backoff = Backoff()

    assert [backoff.after(lived_s=0) for _ in range(2000)][-1] == 30
