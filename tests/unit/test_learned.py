"""What a call is expected to need follows what calls like it needed."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.chat import Message, Usage
from tests.given import user
from worker.limits.estimate import prompt_tokens
from worker.limits.learned import (
    HALVE_AT,
    KEPT_MAX,
    MARGIN,
    MARGIN_TOKENS,
    RATIO_MAX,
    SEEN_MIN,
    TOLD_FROM,
    UNBOUNDED_COMPLETION_TOKENS,
    Counts,
    EstimateKey,
    Estimates,
    halved,
)
from worker.providers.base import ChatRequest

KEY = EstimateKey(assistant="acme/reviews/sentiment", version="1", output="", model="m1")
OTHER = EstimateKey(assistant="acme/reviews/sentiment", version="2", output="", model="m1")


def request(content: str = "Review: good", *, max_tokens: int | None = 500, n: int | None = None) -> ChatRequest:
    return ChatRequest(model="m1", messages=(user(content),), max_tokens=max_tokens, n=n)


COUNTED = prompt_tokens(request())


def use(estimates: Estimates, *completions: int, key: EstimateKey = KEY, prompt: int = COUNTED, **asked: Any) -> None:
    """Make calls of these sizes."""
    for completion in completions:
        expected = estimates.expect(request(**asked), key)
        estimates.learn(key, expected, Usage(prompt_tokens=prompt, completion_tokens=completion))


def exchange_nothing(estimates: Estimates) -> None:
    """What was seen is looked at anew after each exchange."""
    estimates.exchanged(KEY, told={}, merged={})


def completion(estimates: Estimates, key: EstimateKey = KEY, **asked: Any) -> int:
    return estimates.expect(request(**asked), key).completion


class TestCompletions:
    def test_before_anything_was_seen_it_may_need_all_that_is_allowed(self) -> None:
        assert completion(Estimates(), max_tokens=500) == 500
        assert completion(Estimates(), max_tokens=5000) == 5000

    def test_an_unbounded_one_is_given_a_bound_meanwhile(self) -> None:
        assert completion(Estimates(), max_tokens=None) == UNBOUNDED_COMPLETION_TOKENS

    def test_few_calls_tell_nothing_yet(self) -> None:
        estimates = Estimates()
        use(estimates, *[10] * (SEEN_MIN - 1))
        assert completion(estimates) == 500
        use(estimates, 10)
        assert completion(estimates) == 10

    def test_it_is_the_size_that_nine_of_ten_stay_within(self) -> None:
        estimates = Estimates()
        use(estimates, *range(1, 101))
        exchange_nothing(estimates)
        assert 90 <= completion(estimates) <= 95

    @given(st.lists(st.integers(1, 100_000), min_size=SEEN_MIN, max_size=60))
    def test_nine_of_ten_of_what_was_seen_stay_within_and_little_is_added(self, sizes: list[int]) -> None:
        estimates = Estimates()
        use(estimates, *sizes)
        exchange_nothing(estimates)
        expected = completion(estimates, max_tokens=None)
        within = sorted(sizes)[math.ceil(0.9 * len(sizes) - 1e-9) - 1]
        assert within <= expected <= within * 1.05 + 1
        assert sum(size > expected for size in sizes) <= len(sizes) / 10

    def test_it_is_never_more_than_max_tokens(self) -> None:
        estimates = Estimates()
        use(estimates, *[400] * SEEN_MIN)
        assert completion(estimates, max_tokens=64) == 64

    def test_what_nobody_bounds_may_be_more_than_the_bound_of_the_unknown(self) -> None:
        estimates = Estimates()
        use(estimates, *[4000] * SEEN_MIN)
        assert 4000 <= completion(estimates, max_tokens=None) <= 4200

    def test_each_choice_counts(self) -> None:
        estimates = Estimates()
        assert completion(estimates, max_tokens=50, n=3) == 150
        use(estimates, *[30] * SEEN_MIN, n=3)
        assert completion(estimates, n=1) == 10
        assert completion(estimates, n=4) == 40

    def test_longer_answers_are_followed_soon(self) -> None:
        estimates = Estimates()
        use(estimates, *[20] * 1000)
        use(estimates, *[300] * 45)
        assert completion(estimates) >= 300

    def test_shorter_answers_are_followed_after_some_hundreds(self) -> None:
        estimates = Estimates()
        use(estimates, *[300] * 2_000)
        use(estimates, *[20] * 3 * HALVE_AT)
        assert completion(estimates) <= 21

    def test_another_version_output_or_model_begins_anew(self) -> None:
        estimates = Estimates()
        use(estimates, *[20] * SEEN_MIN)
        assert completion(estimates, OTHER) == 500


class TestPrompts:
    def test_before_anything_was_seen_our_count_has_a_margin(self) -> None:
        expected = Estimates().expect(request(), KEY)
        assert expected.counted == COUNTED
        assert expected.prompt == math.ceil(COUNTED * MARGIN + MARGIN_TOKENS)
        assert expected.total == expected.prompt + expected.completion

    @pytest.mark.parametrize("ratio", [0.5, 1.0, 1.7, 4.0])
    def test_another_tokenizer_is_followed(self, ratio: float) -> None:
        estimates = Estimates()
        use(estimates, *[10] * SEEN_MIN, prompt=round(COUNTED * ratio))
        long = request("Review: good " * 200)
        expected = estimates.expect(long, KEY)
        assert expected.prompt == pytest.approx(prompt_tokens(long) * ratio, rel=0.06)

    def test_a_prompt_that_is_no_multiple_of_ours_moves_it_within_reason(self) -> None:
        estimates = Estimates()
        use(estimates, *[10] * SEEN_MIN, prompt=1_000_000_000)
        assert estimates.expect(request(), KEY).prompt <= COUNTED * RATIO_MAX * 1.02 + 1


class TestWhatIsNotLearned:
    def test_a_provider_that_counts_nothing_teaches_nothing(self) -> None:
        estimates = Estimates()
        before = estimates.expect(request(), KEY)
        for _ in range(SEEN_MIN):
            estimates.learn(KEY, before, None)
            estimates.learn(KEY, before, Usage())
        assert estimates.expect(request(), KEY) == before

    def test_of_half_a_count_that_half_is_learned(self) -> None:
        estimates = Estimates()
        before = estimates.expect(request(), KEY)
        for _ in range(SEEN_MIN):
            estimates.learn(KEY, before, Usage(completion_tokens=7))
        after = estimates.expect(request(), KEY)
        assert (after.prompt, after.completion) == (before.prompt, 7)

    def test_an_empty_prompt_is_no_fault(self) -> None:
        estimates = Estimates()
        nothing = ChatRequest(model="m1", messages=(Message(role="user", content=""),))
        for _ in range(SEEN_MIN):
            estimates.learn(KEY, estimates.expect(nothing, KEY), Usage(prompt_tokens=1, completion_tokens=1))
        assert estimates.expect(nothing, KEY).completion == 1


class TestSharing:
    def test_an_assistant_is_asked_about_when_it_is_first_used(self) -> None:
        estimates = Estimates()
        completion(estimates)
        assert estimates.to_exchange() == {KEY: {}}
        estimates.exchanged(KEY, told={}, merged={})
        assert estimates.to_exchange() == {}

    def test_what_others_saw_is_known_at_once(self) -> None:
        one, two = Estimates(), Estimates()
        use(one, *[20] * SEEN_MIN)
        news = one.to_exchange()[KEY]
        assert completion(two) == 500
        two.exchanged(KEY, told={}, merged=news)
        assert completion(two) == 20

    def test_a_few_calls_are_not_worth_telling(self) -> None:
        estimates = Estimates()
        use(estimates, *[20] * (TOLD_FROM - 1))
        assert estimates.to_exchange() == {KEY: {}}
        assert sum(estimates.to_exchange(all_news=True)[KEY].values()) == 2 * (TOLD_FROM - 1)
        use(estimates, 20)
        assert sum(estimates.to_exchange()[KEY].values()) == 2 * TOLD_FROM

    def test_what_came_while_it_was_told_stays_news(self) -> None:
        estimates = Estimates()
        use(estimates, *[20] * 10)
        told = estimates.to_exchange()[KEY]
        use(estimates, *[20] * 6)
        estimates.exchanged(KEY, told=told, merged=told)
        assert completion(estimates) == 20
        assert sum(estimates.to_exchange()[KEY].values()) == 2 * 6

    def test_what_could_not_be_told_is_told_later(self) -> None:
        estimates = Estimates()
        use(estimates, *[20] * 10)
        first = estimates.to_exchange()
        assert estimates.to_exchange() == first

    def test_nothing_grows_while_nobody_can_be_told(self) -> None:
        estimates = Estimates()
        use(estimates, *[20] * 5_000)
        assert sum(estimates.to_exchange()[KEY].values()) <= 2 * (HALVE_AT + 1)

    def test_fields_that_are_none_are_not_taken(self) -> None:
        estimates = Estimates()
        completion(estimates)
        estimates.exchanged(KEY, told={}, merged={"x1": 100, "c": 100, "cx": 100, "c-": 100, "c5": -100, "": 100})
        assert completion(estimates) == 500

    def test_of_very_many_assistants_the_longest_unused_are_forgotten(self) -> None:
        estimates = Estimates()
        use(estimates, *[20] * SEEN_MIN)
        for number in range(KEPT_MAX + 10):
            completion(estimates, EstimateKey("a/b/c", str(number), "", "m"))
            completion(estimates)
        kept = estimates.to_exchange()
        assert len(kept) == KEPT_MAX
        assert completion(estimates) == 20
        estimates.exchanged(EstimateKey("a/b/c", "0", "", "m"), told={}, merged={"c1": 5})
        assert len(estimates.to_exchange()) == KEPT_MAX


@given(st.dictionaries(st.integers(-50, 200), st.integers(1, 200), min_size=1))
def test_half_of_the_counts_has_the_same_shape(counts: dict[int, int]) -> None:
    whole: Counts = {f"c{bucket}": count for bucket, count in counts.items()}
    half = halved(whole)
    assert sum(half.values()) == sum(whole.values()) // 2
    for edge in counts:
        below = sum(count for bucket, count in counts.items() if bucket <= edge)
        half_below = sum(count for name, count in half.items() if int(name[1:]) <= edge)
        assert half_below == below // 2
