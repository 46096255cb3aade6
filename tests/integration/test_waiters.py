"""Jobs that nobody waits for any more, as the gateways see them by the queue's clock."""

from __future__ import annotations

import hashlib
import itertools
from contextlib import ExitStack

import pytest
from redis.asyncio import Redis

from producer.entries import entry_of
from producer.gateway.waiters import Waiters
from schemas import names
from schemas.job import JobRecord
from schemas.scripts import read_script
from tests.given import a_job, a_result, claimed, state, text
from worker.queue.queue import JobQueue

pytestmark = pytest.mark.anyio


class Gateways:
    """What two gateways say to one queue, whose clock stands where the test sets it."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.ours, self.others = Waiters(redis), Waiters(redis)
        for waiters in (self.ours, self.others):
            script = waiters._tell_script
            script.script = str(script.script).replace("redis.call('TIME')", "{ redis.call('GET', 'the-time'), 0 }")
            script.sha = hashlib.sha1(script.script.encode(), usedforsecurity=False).hexdigest()

    async def enqueued(self, *job_ids: str) -> None:
        """Enqueue jobs that are waited for since now."""
        script = self.redis.register_script(read_script("producer", "enqueue.lua"))
        entries = [entry_of(JobRecord(id=job_id, job=a_job(job_id))) for job_id in job_ids]
        await script(keys=[names.WAITERS], args=["", *itertools.chain(*entries)])
        await self.redis.zadd(names.WAITERS, dict.fromkeys(job_ids, await self._now_ms()), xx=True)

    async def at(self, seconds: float, *who: Waiters) -> None:
        """Set the clock, and let these look and do what they found."""
        await self.redis.set("the-time", int(seconds))
        for waiters in who:
            await waiters.look()
            await waiters.aclose()

    async def cancelled(self, *job_ids: str) -> list[str]:
        """Return which of these are called off."""
        return [job_id for job_id in job_ids if "called_off" in await state(self.redis, job_id)]

    async def _now_ms(self) -> int:
        return int(text(await self.redis.get("the-time"))) * 1000


@pytest.fixture
def gateways(redis_client: Redis) -> Gateways:
    return Gateways(redis_client)


async def test_what_no_gateway_speaks_of_any_more_is_cancelled_once_and_the_rest_goes_on(gateways: Gateways) -> None:
    await gateways.at(1000)
    # More than one renewal tells of.
    kept = [f"k{number}" for number in range(2500)]
    await gateways.enqueued("left", *kept)
    with ExitStack() as held:
        for job_id in kept:
            held.enter_context(gateways.others.waiting(job_id))
        for now_s in range(1000, 1010, 2):
            await gateways.at(now_s, gateways.ours, gateways.others)
        assert await gateways.cancelled("left") == []
        await gateways.at(1010, gateways.others, gateways.ours)
        assert await gateways.cancelled("left", *kept) == ["left"]
        assert int(await gateways.redis.zcard(names.WAITERS)) == len(kept)


async def test_a_job_that_ended_is_not_put_back_and_one_that_is_unknown_is_forgotten(gateways: Gateways) -> None:
    queue = JobQueue(gateways.redis)
    await gateways.at(1000)
    await gateways.enqueued("j")
    with gateways.ours.waiting("j"):
        held = await claimed(queue)
        await queue.finish(held, a_result(held.record))
        await gateways.at(1000, gateways.ours)
        assert not await gateways.redis.exists(names.WAITERS)
    await gateways.redis.zadd(names.WAITERS, {"j": 1, "unknown": 1})
    for now_s in range(1002, 1014, 2):
        await gateways.at(now_s, gateways.ours)
    assert not await gateways.redis.exists(names.WAITERS)
    assert await gateways.redis.exists(names.result("j"))


async def test_after_a_gap_others_have_a_leases_time_to_speak_again(gateways: Gateways) -> None:
    await gateways.at(1000)
    await gateways.enqueued("j")
    with gateways.others.waiting("j"):
        for now_s in range(1000, 1012, 2):
            await gateways.at(now_s, gateways.others, gateways.ours)
        # The queue was away, or this machine asleep.
        for now_s in range(1030, 1040, 2):
            await gateways.at(now_s, gateways.ours)
            assert await gateways.cancelled("j") == []
        await gateways.at(1040, gateways.others, gateways.ours)
        assert await gateways.cancelled("j") == []


async def test_a_clock_that_is_set_back_keeps_nothing_for_longer(gateways: Gateways) -> None:
    await gateways.at(9000)
    await gateways.enqueued("j")
    for now_s in range(1000, 1012, 2):
        await gateways.at(now_s, gateways.ours)
    assert await gateways.cancelled("j") == ["j"]
