"""What becomes of a job after a reply, a refusal of the limiter, a provider's fault, and a crash of ours."""

from __future__ import annotations

import pytest

from schemas.chat import Usage
from schemas.outcome import Code, Failed, InvalidOutput, Snoozed, Succeeded
from schemas.output import OutputSpec
from tests.given import no_tools
from worker.flow.decide import (
    BACKOFF_CAP_S,
    JITTER_S,
    RATE_LIMITED_RETRY_S,
    UNREACHABLE_RETRY_S,
    WALL_RETRY_S,
    decide_crash,
    decide_error,
    decide_refusal,
)
from worker.flow.moves import Move, Rules, next_move
from worker.limits.base import Later, TooLarge
from worker.providers.errors import (
    ContentFiltered,
    ContextLengthExceeded,
    KeyRefused,
    ModelUnknown,
    ProviderError,
    QuotaExhausted,
    RateLimited,
    ReplyLost,
    ReplyMalformed,
    RequestRefused,
    ServerFault,
    Unreachable,
)
from worker.queue.steps import ReplyStep

LABEL = OutputSpec(type="enum", enum=("positive", "negative"))


def reply(content: str, *, finish_reason: str | None = "stop", refusal: str | None = None) -> ReplyStep:
    return ReplyStep(content=content, finish_reason=finish_reason, refusal=refusal, model="m1", usage=Usage())


def decide_reply(step: ReplyStep, spec: OutputSpec | None) -> Move:
    """Return what becomes of a job after its first reply, which may not be repaired."""
    return next_move((step,), Rules(output=spec, max_steps=10, max_repairs=0), no_tools())


def least(low: float, _high: float) -> float:
    return low


def most(_low: float, high: float) -> float:
    return high


def middle(low: float, high: float) -> float:
    return (low + high) / 2


class TestReplies:
    @pytest.mark.parametrize(
        ("content", "finish_reason"),
        [
            *[(content, reason) for content in ("Superb.", "", "{not json") for reason in ("stop", "length", None)],
            *[(content, "tool_calls") for content in ("Superb.", "{not json")],
        ],
    )
    def test_without_an_output_spec_the_text_is_the_output(self, content: str, finish_reason: str | None) -> None:
        assert decide_reply(reply(content, finish_reason=finish_reason), None) == Succeeded(output=content)

    @pytest.mark.parametrize("spec", [None, LABEL])
    def test_an_assistant_that_was_still_calling_tools_gave_no_answer(self, spec: OutputSpec | None) -> None:
        outcome = decide_reply(reply("", finish_reason="tool_calls"), spec)
        assert isinstance(outcome, Failed)
        assert outcome.code is Code.STEP_LIMIT

    def test_a_value_that_fits_is_the_output(self) -> None:
        assert decide_reply(reply('{"result": "positive"}'), LABEL) == Succeeded(output="positive")

    def test_a_value_that_does_not_fit_is_invalid_and_its_text_kept(self) -> None:
        outcome = decide_reply(reply('"neutral"'), LABEL)
        assert isinstance(outcome, InvalidOutput)
        assert (outcome.code, outcome.raw_reply) == (Code.OUTPUT_NOT_VALID, '"neutral"')
        assert "positive, negative" in outcome.error

    def test_text_that_is_no_json_is_invalid(self) -> None:
        outcome = decide_reply(reply("I think so"), LABEL)
        assert isinstance(outcome, InvalidOutput)
        assert outcome.code is Code.OUTPUT_NOT_JSON

    def test_a_reply_that_was_cut_off_says_so_and_how_to_mend_it(self) -> None:
        outcome = decide_reply(reply('{"result": "posi', finish_reason="length"), LABEL)
        assert isinstance(outcome, InvalidOutput)
        assert outcome.code is Code.OUTPUT_CUT_OFF
        assert "raise max_tokens" in outcome.error

    def test_a_reply_that_was_cut_off_after_its_value_is_taken(self) -> None:
        assert decide_reply(reply("positive", finish_reason="length"), LABEL) == Succeeded(output="positive")

    @pytest.mark.parametrize("spec", [None, LABEL])
    def test_a_refusal_fails_with_the_models_words(self, spec: OutputSpec | None) -> None:
        outcome = decide_reply(reply("", refusal="I can't help with that"), spec)
        assert outcome == Failed(code=Code.REFUSED_BY_MODEL, error="the model refused: I can't help with that")

    @pytest.mark.parametrize("spec", [None, LABEL])
    def test_a_filtered_reply_fails_whatever_stands_in_it(self, spec: OutputSpec | None) -> None:
        outcome = decide_reply(reply("positive", finish_reason="content_filter"), spec)
        assert isinstance(outcome, Failed)
        assert outcome.code is Code.CONTENT_FILTER


class TestRefusals:
    def test_what_is_larger_than_a_minute_fails_with_both_numbers(self) -> None:
        outcome = decide_refusal(TooLarge(limit_tokens=1000), tokens=1700)
        assert isinstance(outcome, Failed)
        assert outcome.code is Code.TOO_LARGE_FOR_LIMIT
        assert "1700" in outcome.error
        assert "1000" in outcome.error
        assert "ASSISTQ_TPM" in outcome.error

    def test_a_turn_that_is_far_away_holds_the_line_and_burns_no_attempt(self) -> None:
        outcome = decide_refusal(Later(wait_s=42), tokens=10)
        assert isinstance(outcome, Snoozed)
        assert (outcome.delay_s, outcome.code, outcome.hold_lane) == (42, Code.LIMITER_WAIT, True)
        assert (outcome.burns_attempt, outcome.fault) == (False, False)


class TestWalls:
    @pytest.mark.parametrize(
        ("kind", "code", "delay_s"),
        [
            (Unreachable, Code.PROVIDER_UNREACHABLE, UNREACHABLE_RETRY_S),
            (KeyRefused, Code.KEY_REFUSED, WALL_RETRY_S),
            (ModelUnknown, Code.MODEL_UNKNOWN, WALL_RETRY_S),
            (QuotaExhausted, Code.QUOTA_EXHAUSTED, WALL_RETRY_S),
        ],
    )
    @pytest.mark.parametrize("attempt", [1, 5, 1000])
    def test_a_wall_holds_the_line_as_a_fault_and_burns_no_attempt(
        self, kind: type[ProviderError], code: Code, delay_s: float, attempt: int
    ) -> None:
        low, high = (decide_error(kind("no"), attempt=attempt, max_attempts=5, uniform=draw) for draw in (least, most))
        assert low == Snoozed(delay_s=delay_s, code=code, reason="no", hold_lane=True, fault=True)
        assert isinstance(high, Snoozed)
        assert high.delay_s == delay_s + JITTER_S


class TestRateLimits:
    @pytest.mark.parametrize(("asked_s", "waited_s"), [(None, RATE_LIMITED_RETRY_S), (0, 0), (7, 7), (120, 120)])
    @pytest.mark.parametrize("attempt", [1, 1000])
    def test_a_429_waits_as_long_as_asked_never_shorter_and_burns_no_attempt(
        self, asked_s: float | None, waited_s: float, attempt: int
    ) -> None:
        error = RateLimited("slow down", retry_after_s=asked_s)
        low, high = (decide_error(error, attempt=attempt, max_attempts=5, uniform=draw) for draw in (least, most))
        assert low == Snoozed(delay_s=waited_s, code=Code.RATE_LIMITED, reason="slow down", hold_lane=True)
        assert isinstance(high, Snoozed)
        assert high.delay_s == waited_s + JITTER_S

    def test_a_429_that_asks_for_a_long_wait_is_a_wall_that_people_hear_of(self) -> None:
        outcome = decide_error(RateLimited("come tomorrow", retry_after_s=3600), attempt=1, max_attempts=5)
        assert isinstance(outcome, Snoozed)
        assert outcome.fault
        assert not outcome.burns_attempt


class TestRequestsAtFault:
    @pytest.mark.parametrize(
        ("kind", "code"),
        [
            (RequestRefused, Code.REQUEST_REFUSED),
            (ContextLengthExceeded, Code.CONTEXT_LENGTH),
            (ContentFiltered, Code.CONTENT_FILTER),
        ],
    )
    def test_they_fail_at_once_in_the_providers_words(self, kind: type[ProviderError], code: Code) -> None:
        assert decide_error(kind("bad"), attempt=1, max_attempts=5) == Failed(code=code, error="bad")


class TestFaults:
    KINDS = (
        (ServerFault("oops"), Code.SERVER_FAULT),
        (ServerFault("oops", http_status=500), Code.SERVER_FAULT),
        (ServerFault("oops", http_status=409), Code.CONFLICT),
        (ReplyLost("oops"), Code.REPLY_LOST),
        (ReplyMalformed("oops"), Code.REPLY_MALFORMED),
    )

    @pytest.mark.parametrize(("error", "code"), KINDS)
    def test_one_is_tried_again_alone_and_burns_an_attempt(self, error: ProviderError, code: Code) -> None:
        outcome = decide_error(error, attempt=1, max_attempts=5, uniform=middle)
        assert outcome == Snoozed(delay_s=0.5, code=code, reason="oops", burns_attempt=True)

    @pytest.mark.parametrize(("error", "code"), KINDS)
    def test_the_last_attempt_fails_and_says_what_it_met(self, error: ProviderError, code: Code) -> None:
        assert isinstance(decide_error(error, attempt=4, max_attempts=5), Snoozed)
        assert decide_error(error, attempt=5, max_attempts=5) == Failed(
            code=code, error="gave up after 5 attempts: oops"
        )

    def test_with_one_attempt_the_first_is_the_last(self) -> None:
        assert isinstance(decide_error(ServerFault("oops"), attempt=1, max_attempts=1), Failed)

    def test_waits_double_up_to_a_cap_with_full_jitter(self) -> None:
        waits_s = []
        for attempt in range(1, 9):
            outcome = decide_error(ServerFault("oops"), attempt=attempt, max_attempts=99, uniform=most)
            assert isinstance(outcome, Snoozed)
            waits_s.append(outcome.delay_s)
        assert waits_s == [1, 2, 4, 8, 16, BACKOFF_CAP_S, BACKOFF_CAP_S, BACKOFF_CAP_S]
        shortest = decide_error(ServerFault("oops"), attempt=8, max_attempts=99, uniform=least)
        assert isinstance(shortest, Snoozed)
        assert shortest.delay_s == 0

    def test_a_wait_that_the_provider_asks_for_is_kept(self) -> None:
        outcome = decide_error(ServerFault("busy", retry_after_s=90), attempt=1, max_attempts=5)
        assert isinstance(outcome, Snoozed)
        assert outcome.delay_s == 90

    def test_two_that_fail_at_once_do_not_come_back_at_once(self) -> None:
        waits_s = set()
        for _ in range(20):
            outcome = decide_error(ServerFault("oops"), attempt=3, max_attempts=9)
            assert isinstance(outcome, Snoozed)
            waits_s.add(outcome.delay_s)
        assert len(waits_s) == 20


class TestCrashes:
    def test_one_of_ours_is_tried_again_and_burns_an_attempt(self) -> None:
        outcome = decide_crash(KeyError("x"), attempt=1, max_attempts=3, uniform=most)
        assert outcome == Snoozed(delay_s=1, code=Code.INTERNAL_ERROR, reason="KeyError: 'x'", burns_attempt=True)

    def test_it_does_not_come_back_for_ever(self) -> None:
        outcome = decide_crash(KeyError("x"), attempt=3, max_attempts=3)
        assert outcome == Failed(code=Code.INTERNAL_ERROR, error="gave up after 3 attempts: KeyError: 'x'")


def leaves(kind: type[ProviderError]) -> list[type[ProviderError]]:
    return [kind, *(leaf for child in kind.__subclasses__() for leaf in leaves(child))]


@pytest.mark.parametrize("kind", leaves(ProviderError)[1:])
def test_every_error_of_a_provider_has_a_decision(kind: type[ProviderError]) -> None:
    assert isinstance(decide_error(kind("no"), attempt=1, max_attempts=5), Failed | Snoozed)
