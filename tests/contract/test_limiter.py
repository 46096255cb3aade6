"""What every limiter does: the one in Redis, and the fake of the unit tests."""

from __future__ import annotations

import pytest

from schemas.lane import Lane
from schemas.outcome import Code
from worker.limits.base import Granted, Later, Limiter, TooLarge
from worker.limits.fake import FakeLimiter
from worker.limits.redis_limiter import LaneLimits, RedisLimiter

pytestmark = pytest.mark.anyio

LANE = Lane("acme", "provider", "m1")
LIMITS = LaneLimits(rpm=60, tpm=6000, burst_s=60)


@pytest.fixture(params=["fake", "redis"])
def limiter(request: pytest.FixtureRequest) -> Limiter:
    """A limiter of a lane that nobody has used, which grants a minute's limit at once."""
    if request.param == "fake":
        return FakeLimiter([Granted(wait_s=0, tokens=6000), Later(wait_s=60)])
    return RedisLimiter(request.getfixturevalue("redis_client"), LIMITS)


async def test_a_free_lane_grants_at_once_what_was_asked(limiter: Limiter) -> None:
    answer = await limiter.reserve(LANE, tokens=6000)
    assert isinstance(answer, Granted)
    assert (answer.wait_s, answer.tokens) == (0, 6000)


async def test_a_lane_that_is_used_up_says_how_long_to_wait(limiter: Limiter) -> None:
    await limiter.reserve(LANE, tokens=6000)
    answer = await limiter.reserve(LANE, tokens=10)
    assert isinstance(answer, Later)
    assert 0 < answer.wait_s <= 62


async def test_it_takes_settlements_cancellations_cool_downs_and_faults(limiter: Limiter) -> None:
    grant = await limiter.reserve(LANE, tokens=6000)
    assert isinstance(grant, Granted)
    await limiter.settle(LANE, grant, used_tokens=10)
    await limiter.settle(LANE, grant, used_tokens=0, fault_over=False)
    await limiter.cancel(LANE, grant)
    await limiter.cool_down(LANE, delay_s=1)
    await limiter.fault(LANE, code=Code.KEY_REFUSED, reason="no")


class TestRedis:
    @pytest.fixture
    def limiter(self, request: pytest.FixtureRequest) -> Limiter:
        return RedisLimiter(request.getfixturevalue("redis_client"), LIMITS)

    async def test_what_was_not_used_can_be_had_at_once(self, limiter: Limiter) -> None:
        grant = await limiter.reserve(LANE, tokens=6000)
        assert isinstance(grant, Granted)
        await limiter.settle(LANE, grant, used_tokens=1000)
        again = await limiter.reserve(LANE, tokens=5000)
        assert isinstance(again, Granted)
        assert again.wait_s == 0

    async def test_what_was_used_beyond_the_reservation_is_waited_for(self, limiter: Limiter) -> None:
        grant = await limiter.reserve(LANE, tokens=1000)
        assert isinstance(grant, Granted)
        await limiter.settle(LANE, grant, used_tokens=6000)
        assert isinstance(await limiter.reserve(LANE, tokens=1000), Later)

    async def test_a_cancelled_call_gives_back_its_request_too(self, limiter: Limiter) -> None:
        grants = [await limiter.reserve(LANE, tokens=1) for _ in range(60)]
        assert all(isinstance(grant, Granted) and grant.wait_s == 0 for grant in grants)
        assert isinstance(await limiter.reserve(LANE, tokens=1), Later)
        assert isinstance(grants[0], Granted)
        await limiter.cancel(LANE, grants[0])
        assert isinstance(await limiter.reserve(LANE, tokens=1), Granted)

    async def test_a_call_that_was_refused_keeps_its_request(self, limiter: Limiter) -> None:
        grants = [await limiter.reserve(LANE, tokens=1) for _ in range(60)]
        assert isinstance(grants[0], Granted)
        await limiter.settle(LANE, grants[0], used_tokens=0, fault_over=False)
        assert isinstance(await limiter.reserve(LANE, tokens=1), Later)

    async def test_more_than_a_minutes_tokens_can_never_be_had(self, limiter: Limiter) -> None:
        assert await limiter.reserve(LANE, tokens=6001) == TooLarge(limit_tokens=6000)
        assert isinstance(await limiter.reserve(LANE, tokens=6000), Granted)

    @pytest.mark.parametrize("delays_s", [(100, 20), (20, 100)])
    async def test_of_two_cool_downs_the_longer_wins(self, limiter: Limiter, delays_s: tuple[float, float]) -> None:
        for delay_s in delays_s:
            await limiter.cool_down(LANE, delay_s=delay_s)
        answer = await limiter.reserve(LANE, tokens=1)
        assert isinstance(answer, Later)
        assert 95 < answer.wait_s <= 100

    async def test_a_short_cool_down_is_a_wait(self, limiter: Limiter) -> None:
        await limiter.cool_down(LANE, delay_s=3)
        answer = await limiter.reserve(LANE, tokens=1)
        assert isinstance(answer, Granted)
        assert 2.5 < answer.wait_s <= 3

    async def test_lanes_do_not_know_each_other(self, limiter: Limiter) -> None:
        await limiter.reserve(LANE, tokens=6000)
        await limiter.cool_down(LANE, delay_s=100)
        for other in (Lane("other", "provider", "m1"), Lane("acme", "other", "m1"), Lane("acme", "provider", "m2")):
            answer = await limiter.reserve(other, tokens=6000)
            assert isinstance(answer, Granted)
            assert answer.wait_s == 0
