"""What follows from one POST of a webhook."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.webhooks.decide import RETRY_AFTER_S, Answer, Delivered, GaveUp, Gone, RetryAt, decide

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def after(answer: Answer, *, attempts: int = 1, jitter: float = 0.0):
    return decide(answer, attempts=attempts, now=NOW, jitter=jitter)


@pytest.mark.parametrize("status", [200, 201, 204, 299])
def test_any_2xx_is_delivered_even_at_the_last_attempt(status: int) -> None:
    assert after(Answer(status, None), attempts=99) == Delivered()


@pytest.mark.parametrize("status", [100, 199, 301, 302, 307, 400, 401, 404, 429, 500, 503, None])
def test_everything_else_is_sent_again(status: int | None) -> None:
    assert after(Answer(status, "no")) == RetryAt(NOW + timedelta(seconds=5))


def test_gone_is_for_ever() -> None:
    assert after(Answer(410, "gone")) == Gone()


def test_the_schedule_is_5_s_to_10_h_and_ends_after_the_eighth_attempt() -> None:
    delays_s = []
    for attempts in range(1, 8):
        decision = after(Answer(500, "no"), attempts=attempts)
        assert isinstance(decision, RetryAt)
        delays_s.append((decision.at - NOW).total_seconds())
    assert delays_s == [5, 300, 1800, 7200, 18000, 36000, 36000]
    assert after(Answer(500, "no"), attempts=8) == GaveUp()


@given(attempts=st.integers(1, len(RETRY_AFTER_S)), jitter=st.floats(0, 1))
def test_jitter_only_delays_and_by_a_tenth_at_most(attempts: int, jitter: float) -> None:
    decision = after(Answer(None, "refused"), attempts=attempts, jitter=jitter)
    assert isinstance(decision, RetryAt)
    delay_s = (decision.at - NOW).total_seconds()
    assert RETRY_AFTER_S[attempts - 1] <= delay_s <= RETRY_AFTER_S[attempts - 1] * 1.1 + 1e-6
