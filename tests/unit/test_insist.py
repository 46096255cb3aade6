"""Writes that must not be lost, and what a shutdown does to one that is on its way."""

from __future__ import annotations

import asyncio

import pytest
from redis.exceptions import NoScriptError, ResponseError

from worker.errors import RedisAway, redis_away
from worker.events import Events
from worker.gather import Gathered
from worker.insist import insist, to_its_end

LONG_S = 30.0


def test_a_write_that_stands_behind_others_is_made_although_its_caller_is_cancelled_again_and_again() -> None:
    async def scenario() -> list[str]:
        made: list[str] = []
        first_may_end = asyncio.Event()

        async def work(items: list[str]) -> list[str]:
            await first_may_end.wait()
            made.extend(items)
            return items

        writes: Gathered[str, str] = Gathered(work, at_most=1)
        first = asyncio.create_task(writes.do("first"))
        await asyncio.sleep(0)
        step = asyncio.create_task(to_its_end(writes.do("step"), within_s=LONG_S))
        await asyncio.sleep(0)
        for _ in range(2):
            step.cancel()
            await asyncio.sleep(0)
        first_may_end.set()
        await first
        with pytest.raises(asyncio.CancelledError):
            await step
        return made

    assert asyncio.run(scenario()) == ["first", "step"]


def test_a_write_that_never_ends_holds_nobody_up_for_longer_than_it_may() -> None:
    async def scenario() -> None:
        write = asyncio.create_task(to_its_end(asyncio.sleep(3600), within_s=0.01))
        await asyncio.sleep(0)
        write.cancel()
        with pytest.raises(asyncio.CancelledError):
            await write

    asyncio.run(asyncio.wait_for(scenario(), LONG_S))


def test_what_the_write_returns_or_raises_is_the_callers() -> None:
    async def returns() -> int:
        return 7

    async def raises() -> int:
        raise RedisAway("gone")

    assert asyncio.run(to_its_end(returns(), within_s=1)) == 7
    with pytest.raises(RedisAway, match="gone"):
        asyncio.run(to_its_end(raises(), within_s=1))


@pytest.mark.parametrize("passing", [NoScriptError("NOSCRIPT No matching script."), ResponseError("LOADING dataset")])
def test_a_server_that_starts_again_is_asked_again(passing: ResponseError) -> None:
    answers: list[Exception | int] = [passing, 1]

    async def write() -> int:
        answer = answers.pop(0)
        with redis_away():
            if isinstance(answer, Exception):
                raise answer
        assert isinstance(answer, int)
        return answer

    assert asyncio.run(insist(write, what="a write", events=Events())) == 1


def test_a_refusal_that_stays_is_raised() -> None:
    async def write() -> int:
        with redis_away():
            raise ResponseError("WRONGTYPE Operation against a key")

    with pytest.raises(RedisAway):
        asyncio.run(insist(write, what="a write", events=Events()))
