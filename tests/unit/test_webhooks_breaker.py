"""When an endpoint is left alone, and for how long."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from worker.webhooks.breaker import (
    AT_ONCE,
    HEALTHY,
    Admission,
    Health,
    admit,
    after_failure,
    after_gone,
    after_success,
    kept_failing,
    room,
)

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def failed(times: int, health: Health = HEALTHY, *, probe: bool = False) -> Health:
    for _ in range(times):
        health = after_failure(health, probe=probe, now=NOW)
    return health


def test_the_fifth_failure_in_a_row_opens_for_30_s_and_each_failed_probe_for_twice_as_long_up_to_10_min() -> None:
    assert failed(4).open_until is None
    health = failed(5)
    opens_s = []
    for _ in range(7):
        assert health.open_until is not None
        opens_s.append((health.open_until - NOW).total_seconds())
        health = failed(1, health, probe=True)
    assert opens_s == [30, 60, 120, 240, 480, 600, 600]


def test_failures_of_what_was_sent_before_it_opened_do_not_open_it_for_longer() -> None:
    assert failed(3, failed(5)) == failed(5)


def test_a_success_between_failures_starts_the_count_anew() -> None:
    assert after_success(failed(4)) == HEALTHY
    assert failed(4, after_success(failed(4))).open_until is None


def test_an_open_one_waits_and_lets_one_probe_through_when_its_time_is_up() -> None:
    health = failed(5)
    later = NOW + timedelta(seconds=30)
    assert admit(health, running=0, now=later - timedelta(microseconds=1)) is Admission.WAIT
    assert admit(health, running=0, now=later) is Admission.PROBE
    # What the claim of the probe does.
    probed = replace(health, open_until=later + timedelta(seconds=60))
    assert admit(probed, running=0, now=later) is Admission.WAIT
    assert admit(probed, running=0, now=later + timedelta(seconds=60)) is Admission.PROBE


def test_an_endpoint_fails_since_the_first_failure_after_its_last_success_or_the_first_that_is_known() -> None:
    later = NOW + timedelta(hours=1)
    assert after_failure(failed(1), probe=False, now=later).failing_since == NOW
    assert after_failure(after_success(failed(9)), probe=False, now=later).failing_since == later
    of_an_older_release = Health(failures=9, open_until=NOW)
    assert after_failure(of_an_older_release, probe=True, now=later).failing_since == later


def test_one_kept_failing_if_it_took_nothing_since_and_failed_a_moment_ago() -> None:
    health, earlier = failed(5), NOW - timedelta(seconds=1)
    assert kept_failing(health, running=0, since=NOW, now=NOW)
    assert not kept_failing(health, running=0, since=earlier, now=NOW)
    assert not kept_failing(health, running=1, since=NOW, now=NOW)
    assert not kept_failing(health, running=0, since=NOW, now=NOW + timedelta(seconds=30))
    assert not kept_failing(HEALTHY, running=0, since=NOW, now=NOW)


def test_a_disabled_one_stays_so_whatever_comes_of_what_is_in_flight() -> None:
    health = after_gone(failed(5), reason="HTTP 410", now=NOW)
    assert admit(health, running=0, now=NOW + timedelta(days=9)) is Admission.REFUSE
    assert failed(3, health) == after_success(health) == after_gone(health, reason="again", now=NOW) == health


@given(running=st.integers(0, 9), failures=st.integers(0, 9), probe=st.booleans())
def test_there_is_room_exactly_where_a_claim_is_not_put_off(running: int, failures: int, probe: bool) -> None:
    health = failed(failures, probe=probe)
    for now in (NOW, NOW + timedelta(hours=1)):
        more = room(health, running=running, now=now)
        assert (more > 0) is (admit(health, running=running, now=now) is not Admission.WAIT)
        assert more + running <= AT_ONCE or more <= 1


@given(failures=st.integers(5, 10_000))
def test_no_number_of_failures_is_too_large(failures: int) -> None:
    health = after_failure(Health(failures=failures, open_until=NOW), probe=True, now=NOW)
    assert health.open_until is not None
    assert health.open_until - NOW <= timedelta(minutes=10)
