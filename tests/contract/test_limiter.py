"""What every limiter does: the one in Redis, and the fake of the unit tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from schemas import names
from schemas.lane import Lane, LaneFault
from schemas.lane_limits import LaneLimits
from schemas.outcome import Code
from schemas.quota_told import QuotaTold
from tests.given import text, until
from worker.clock import Clock
from worker.events import Event, Events
from worker.limits.base import Answer, Granted, Later, Limiter, Stopped, TooLarge
from worker.limits.fake import FakeLimiter
from worker.limits.redis_limiter import RedisLimiter
from worker.limits.turns import channel

pytestmark = pytest.mark.anyio

LANE = Lane("acme", "provider", "m1")
DEADLINE_S = 10
# All of a minute's limit at once, and then nothing for a minute.
LIMITS = LaneLimits(rpm=60, tpm=6000, shape="window")


@pytest.fixture(params=["fake", "redis"])
def limiter(request: pytest.FixtureRequest) -> Limiter:
    """A limiter of a lane that nobody has used, which grants a minute's limit at once."""
    if request.param == "fake":
        return FakeLimiter([Granted(id="g", tokens=6000), Later(wait_s=60)])
    return limiter_at(request.getfixturevalue("redis_client"))


def limiter_at(
    redis: Redis, *, clock: Clock | None = None, process: str = "p1", told: list[Event] | None = None
) -> RedisLimiter:
    return RedisLimiter(
        redis,
        limits_of=lambda _: LIMITS,
        clock=clock or Clock(),
        process=process,
        events=Events() if told is None else Events(told.append),
    )


async def test_a_free_lane_grants_at_once_what_was_asked(limiter: Limiter) -> None:
    answer = await limiter.reserve(LANE, tokens=6000, owner="j")
    assert isinstance(answer, Granted)
    assert (answer.waited_s, answer.tokens) == (0, 6000)


async def test_a_lane_that_is_used_up_says_when_to_ask_again(limiter: Limiter) -> None:
    assert isinstance(await limiter.reserve(LANE, tokens=6000, owner="j"), Granted)
    answer = await limiter.reserve(LANE, tokens=10, owner="k")
    assert isinstance(answer, Later)
    assert 0 < answer.wait_s <= 62


async def test_it_takes_settlements_cancellations_cool_downs_faults_and_the_providers_word(limiter: Limiter) -> None:
    grant = await limiter.reserve(LANE, tokens=6000, owner="j")
    assert isinstance(grant, Granted)
    await limiter.settle(LANE, grant, used_tokens=10)
    await limiter.settle(LANE, grant, used_tokens=0, fault_over=False)
    await limiter.cancel(LANE, grant)
    await limiter.cool_down(LANE, delay_s=1)
    await limiter.fault(LANE, code=Code.KEY_REFUSED, reason="no")
    await limiter.believe(LANE, QuotaTold(limit_tokens=10, remaining_tokens=0, reset_tokens_s=60))
    assert await limiter.expire() == 0


class TestFake:
    async def test_a_grant_ends_once(self) -> None:
        limiter = FakeLimiter()
        grant = await limiter.reserve(LANE, tokens=10, owner="j")
        assert isinstance(grant, Granted)
        assert limiter.in_flight == {grant.id: grant}
        await limiter.settle(LANE, grant, used_tokens=4)
        await limiter.cancel(LANE, grant)
        assert limiter.in_flight == {}
        assert limiter.told == [("reserve", LANE, 10), ("settle", LANE, -6)]


class TestRedis:
    @pytest.fixture
    async def limiter(self, redis_client: Redis) -> AsyncIterator[RedisLimiter]:
        limiter = limiter_at(redis_client)
        listens = asyncio.create_task(limiter.listen_forever())
        await until(lambda: is_heard(redis_client))
        yield limiter
        listens.cancel()
        await asyncio.gather(listens, return_exceptions=True)
        await limiter.aclose()

    async def test_what_was_not_used_can_be_had_at_once(self, limiter: Limiter) -> None:
        grant = await granted(limiter, 6000)
        await limiter.settle(LANE, grant, used_tokens=1000)
        assert (await granted(limiter, 5000)).waited_s == 0

    async def test_a_cancelled_call_gives_back_its_request_too(self, limiter: Limiter) -> None:
        grants = [await granted(limiter, 1) for _ in range(60)]
        assert isinstance(await limiter.reserve(LANE, tokens=1, owner="j"), Later)
        await limiter.cancel(LANE, grants[0])
        await granted(limiter, 1)

    async def test_a_call_that_was_refused_keeps_its_request(self, limiter: Limiter) -> None:
        grants = [await granted(limiter, 1) for _ in range(60)]
        await limiter.settle(LANE, grants[0], used_tokens=0, fault_over=False)
        assert isinstance(await limiter.reserve(LANE, tokens=1, owner="j"), Later)

    async def test_more_than_a_minutes_tokens_can_never_be_had(self, limiter: Limiter) -> None:
        assert await limiter.reserve(LANE, tokens=6001, owner="j") == TooLarge(limit_tokens=6000)
        await granted(limiter, 6000)

    async def test_who_waits_is_woken_by_what_another_gives_back(
        self, limiter: RedisLimiter, redis_client: Redis
    ) -> None:
        grant = await granted(limiter, 5000)
        # Its own time would come in a minute.
        waits = asyncio.create_task(limiter.reserve(LANE, tokens=2000, owner="j"))
        await until(lambda: is_waiting(redis_client))
        await limiter_at(redis_client, process="p2").settle(LANE, grant, used_tokens=1000)
        answer = await asyncio.wait_for(waits, DEADLINE_S)
        assert isinstance(answer, Granted)
        assert answer.waited_s > 0

    async def test_a_short_cool_down_is_a_wait(self, limiter: RedisLimiter) -> None:
        await limiter.cool_down(LANE, delay_s=0.05)
        assert (await granted(limiter, 10)).waited_s > 0

    async def test_a_shutdown_ends_the_wait_and_the_ticket(self, redis_client: Redis) -> None:
        clock = Clock()
        limiter = limiter_at(redis_client, clock=clock)
        await granted(limiter, 5000)
        waits = asyncio.create_task(limiter.reserve(LANE, tokens=2000, owner="j"))
        await until(lambda: is_waiting(redis_client))
        clock.stop()
        assert await asyncio.wait_for(waits, DEADLINE_S) == Stopped()
        await limiter.aclose()
        assert not await is_waiting(redis_client)
        assert await limiter.reserve(LANE, tokens=10, owner="j") == Stopped()

    async def test_who_is_cancelled_leaves_the_line(self, limiter: RedisLimiter, redis_client: Redis) -> None:
        await granted(limiter, 5000)
        waits = asyncio.create_task(limiter.reserve(LANE, tokens=2000, owner="j"))
        await until(lambda: is_waiting(redis_client))
        waits.cancel()
        await asyncio.gather(waits, return_exceptions=True)
        await limiter.aclose()
        assert waits.cancelled()
        assert not await is_waiting(redis_client)

    async def test_who_asks_no_longer_counts_as_entering(self, limiter: RedisLimiter, redis_client: Redis) -> None:
        entering = f"{names.PREFIX}:entering:{LANE.key}"
        await redis_client.zadd(entering, {"j": 1, "k": 1})
        await limiter.reserve(LANE, tokens=10, owner="j")
        assert await redis_client.zrange(entering, 0, -1) == [b"k"]

    async def test_admission_looks_again_when_something_is_given_back(
        self, limiter: RedisLimiter, redis_client: Redis
    ) -> None:
        parked = f"{names.PREFIX}:parked"
        for used_tokens, at in ((10, 7), (9, 0)):
            await redis_client.zadd(parked, {LANE.key: 7})
            await limiter.settle(LANE, await granted(limiter, 10), used_tokens=used_tokens)
            assert await redis_client.zscore(parked, LANE.key) == at
        await redis_client.delete(parked)
        await limiter.cancel(LANE, await granted(limiter, 10))
        assert not await redis_client.exists(parked), "a lane that nobody parked is not"

    async def test_lanes_do_not_know_each_other(self, limiter: RedisLimiter) -> None:
        await granted(limiter, 6000)
        await limiter.cool_down(LANE, delay_s=100)
        for other in (Lane("other", "provider", "m1"), Lane("acme", "other", "m1"), Lane("acme", "provider", "m2")):
            answer = await limiter.reserve(other, tokens=6000, owner="j")
            assert isinstance(answer, Granted)

    async def test_many_at_once_from_many_processes_get_the_limit_and_no_more(self, redis_client: Redis) -> None:
        limiters = [limiter_at(redis_client, process=f"p{number}") for number in range(4)]
        asked = [limiters[number % 4].reserve(LANE, tokens=1, owner="j") for number in range(90)]
        answers: list[Answer] = await asyncio.gather(*asked)
        assert sum(isinstance(answer, Granted) for answer in answers) == 60
        assert sum(isinstance(answer, Later) for answer in answers) == 30

    async def test_a_lower_limit_that_the_provider_tells_holds(self, limiter: RedisLimiter) -> None:
        await granted(limiter, 10)
        await limiter.believe(LANE, QuotaTold(limit_tokens=100))
        # It may pass: only what our own limit can never hold is too large.
        answer = await limiter.reserve(LANE, tokens=200, owner="j")
        assert isinstance(answer, Later)
        assert answer.wait_s <= 60

    async def test_a_lane_keeps_the_beginning_of_its_fault_and_counts_its_calls(
        self, limiter: RedisLimiter, redis_client: Redis
    ) -> None:
        async def fault() -> LaneFault | None:
            raw = await redis_client.hget(names.FAULTS, LANE.key)
            return LaneFault.model_validate_json(raw) if raw else None

        await limiter.fault(LANE, code=Code.KEY_REFUSED, reason="first")
        first = await fault()
        await limiter.fault(LANE, code=Code.KEY_REFUSED, reason="again")
        again = await fault()
        assert first
        assert again
        assert (again.since_ms, again.count, again.reason) == (first.since_ms, 2, "again")
        await limiter.fault(LANE, code=Code.MODEL_UNKNOWN, reason="another")
        another = await fault()
        assert another
        assert (another.code, another.count) == (Code.MODEL_UNKNOWN, 1)
        await limiter.cancel(LANE, await granted(limiter, 10))
        assert await fault() is not None, "a call that was not sent says nothing about the lane"
        await limiter.settle(LANE, await granted(limiter, 10), used_tokens=1, fault_over=False)
        assert await fault() is not None
        await limiter.settle(LANE, await granted(limiter, 10), used_tokens=1)
        assert await fault() is None


async def granted(limiter: Limiter, tokens: int) -> Granted:
    answer = await limiter.reserve(LANE, tokens=tokens, owner="j")
    assert isinstance(answer, Granted)
    return answer


async def is_waiting(redis: Redis) -> bool:
    records = await redis.hvals(f"{names.PREFIX}:held:{LANE.key}")
    return any(text(record).startswith("waiting") for record in records)


async def is_heard(redis: Redis) -> bool:
    ((_, count),) = await redis.pubsub_numsub(channel("p1"))
    return bool(count)
