"""What providers say of their limits is read; what makes no sense is as if it had not been said."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.quota_told import QuotaTold
from worker.providers.rate_headers import RESET_MAX_S, told_by

# 2026-11-21T12:00:00Z
DATE, NOW = "Sat, 21 Nov 2026 12:00:00 GMT", 1_795_262_400


def test_an_answer_without_such_headers_tells_nothing() -> None:
    assert told_by({"content-type": "application/json", "date": DATE}) is None


def test_openais_headers_are_read_whole() -> None:
    assert told_by(
        {
            "x-ratelimit-limit-requests": "500",
            "x-ratelimit-remaining-requests": "499",
            "x-ratelimit-reset-requests": "120ms",
            "x-ratelimit-limit-tokens": "60000",
            "x-ratelimit-remaining-tokens": "59871",
            "x-ratelimit-reset-tokens": "6m0s",
        }
    ) == QuotaTold(500, 499, 0.12, 60_000, 59_871, 360.0)


def test_header_names_are_read_whatever_their_case() -> None:
    assert told_by({"X-RateLimit-Remaining-Requests": "3"}) == QuotaTold(remaining_requests=3)


def test_azure_tells_what_is_left_and_no_more() -> None:
    told = told_by({"x-ratelimit-remaining-requests": "9", "x-ratelimit-remaining-tokens": "120000"})
    assert told == QuotaTold(remaining_requests=9, remaining_tokens=120_000)


def test_anthropics_resets_are_times_on_its_own_clock() -> None:
    assert told_by(
        {
            "date": DATE,
            "anthropic-ratelimit-requests-limit": "50",
            "anthropic-ratelimit-requests-remaining": "0",
            "anthropic-ratelimit-requests-reset": "2026-11-21T12:00:30Z",
            "anthropic-ratelimit-tokens-limit": "40000",
            "anthropic-ratelimit-tokens-remaining": "39000",
            "anthropic-ratelimit-tokens-reset": "2026-11-21T13:00:01+01:00",
        }
    ) == QuotaTold(50, 0, 30.0, 40_000, 39_000, 1.0)


def test_of_limits_for_input_and_output_the_tighter_one_is_told_and_neither_is_the_limit() -> None:
    assert told_by(
        {
            "date": DATE,
            "anthropic-ratelimit-input-tokens-limit": "40000",
            "anthropic-ratelimit-input-tokens-remaining": "39000",
            "anthropic-ratelimit-input-tokens-reset": "2026-11-21T12:00:01Z",
            "anthropic-ratelimit-output-tokens-limit": "8000",
            "anthropic-ratelimit-output-tokens-remaining": "100",
            "anthropic-ratelimit-output-tokens-reset": "2026-11-21T12:00:50Z",
        }
    ) == QuotaTold(remaining_tokens=100, reset_tokens_s=50.0)


@pytest.mark.parametrize("prefix", ["x-ratelimit", "RateLimit"])
def test_plain_headers_are_about_requests_of_a_window_that_nobody_names(prefix: str) -> None:
    told = told_by({f"{prefix}-limit": "100", f"{prefix}-remaining": "0", f"{prefix}-reset": "17"})
    assert told == QuotaTold(remaining_requests=0, reset_requests_s=17.0)


@pytest.mark.parametrize("reset", [f"{NOW + 17}", f"{NOW + 17}000", f"{NOW + 17}.0"])
def test_a_plain_reset_may_be_an_epoch(reset: str) -> None:
    assert told_by({"date": DATE, "x-ratelimit-reset": reset}) == QuotaTold(reset_requests_s=17.0)


@pytest.mark.parametrize("text", ['"default";r=50;t=30', '"burst"; r=50; t=30'])
def test_the_drafts_structured_field_is_read(text: str) -> None:
    assert told_by({"ratelimit": text}) == QuotaTold(remaining_requests=50, reset_requests_s=30.0)


def test_of_several_policies_none_is_believed() -> None:
    assert told_by({"ratelimit": '"minute";r=50;t=30, "day";r=5000;t=80000'}) is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1.0),
        ("6m0s", 360.0),
        ("1h2m3.5s", 3723.5),
        ("20ms", 0.02),
        ("1m20ms", 60.02),
        ("2m59.56s", 179.56),
        ("23h59m59s", 86_399.0),
        ("1d", 86_400.0),
        ("0", 0.0),
        ("0s", 0.0),
        (" 7 ", 7.0),
        ("7.66", 7.66),
    ],
)
def test_a_duration_is_read_as_providers_write_it(text: str, seconds: float) -> None:
    told = told_by({"x-ratelimit-reset-tokens": text})
    assert told is not None
    assert told.reset_tokens_s == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "-1", "-1s", "nan", "NaN", "inf", "1e300", "soon", "s", "1x", "1s2m", "m", "5,5", "1_000", "٣"),
        *("9" * 400, "2d", "100h", "86401", "0001-01-01T00:00:00Z", "2026-11-21", "2026-11-21T12:00:30", "Z"),
        # a moment that has passed, and one beyond a day
        *(f"{NOW - 1}", f"{NOW + 90_000}", "2026-11-21T11:59:59Z", "2027-11-21T12:00:00Z"),
    ],
)
def test_a_reset_that_makes_no_sense_is_not_told(text: str) -> None:
    headers = {"date": DATE, "x-ratelimit-reset-requests": text, "x-ratelimit-reset": text}
    headers["anthropic-ratelimit-tokens-reset"] = text
    assert told_by(headers) is None


@pytest.mark.parametrize("text", ["", "-1", "nan", "infinity", "1e9", "many", "9" * 30, "1,000", "5, 5", "0x10"])
def test_a_count_that_makes_no_sense_is_not_told(text: str) -> None:
    assert told_by({"x-ratelimit-limit-requests": text, "x-ratelimit-remaining-tokens": text}) is None


def test_a_part_that_makes_no_sense_leaves_the_others() -> None:
    told = told_by({"x-ratelimit-limit-requests": "many", "x-ratelimit-remaining-requests": "12"})
    assert told == QuotaTold(remaining_requests=12)


def test_a_date_that_is_none_leaves_our_own_clock() -> None:
    told = told_by({"date": "yesterday", "x-ratelimit-reset": "12"})
    assert told == QuotaTold(reset_requests_s=12.0)


_names = st.sampled_from(
    [
        *(
            "x-ratelimit-limit-requests",
            "x-ratelimit-remaining-tokens",
            "x-ratelimit-reset-tokens",
            "x-ratelimit-reset",
        ),
        *("anthropic-ratelimit-tokens-reset", "anthropic-ratelimit-input-tokens-remaining", "ratelimit", "date"),
    ]
)


@given(st.dictionaries(_names, st.text() | st.from_regex(r"[0-9dhms.:TZ+-]{0,20}")))
def test_whatever_is_said_is_no_error_and_within_reason(headers: dict[str, str]) -> None:
    told = told_by(headers)
    if told is not None:
        assert 0 <= (told.limit_requests or 0) < 10**12
        assert 0 <= (told.reset_tokens_s or 0) <= RESET_MAX_S
        assert 0 <= (told.reset_requests_s or 0) <= RESET_MAX_S
