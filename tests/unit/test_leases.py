"""A renewal that crosses a job's last write: the job was not lost, it ended."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from schemas import JobRecord
from tests.given import a_job
from worker.errors import RedisAway
from worker.events import Events
from worker.queue.leases import Leases
from worker.queue.queue import Claimed, Hint, StaleJobError


class CrossingQueue:
    """A queue that answers a renewal, with the loss of all, only when it is told to."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.answer = asyncio.Event()

    async def renew(self, held: list[Hint]) -> set[str]:
        self.asked.set()
        await self.answer.wait()
        return {hint.job_id for hint in held}


def claimed() -> Claimed:
    record = JobRecord(id="j", job=a_job())
    return Claimed(record=record, epoch=1, attempts=0, enqueued_ms=0, claimed_ms=0, journal=())


async def crossed(*, last_write: bool) -> str:
    """Return how the task of a job ends of which a renewal hears, during a write, that it is no longer ours."""
    queue = CrossingQueue()
    leases = Leases(cast("Any", queue), Events())
    writing, written = asyncio.Event(), asyncio.Event()

    async def job() -> str:
        try:
            async with leases.held(claimed()):
                await queue.asked.wait()
                if last_write:
                    leases.let_go(claimed())
                writing.set()
                await written.wait()
        except StaleJobError as stale:
            return stale.at
        return "ended"

    task = asyncio.create_task(job())
    await asyncio.sleep(0)
    renewal = asyncio.create_task(leases._renew())
    await writing.wait()
    queue.answer.set()
    await renewal
    written.set()
    ended = await asyncio.wait_for(task, 5)
    assert leases.count == 0
    return ended


def test_a_renewal_that_crosses_the_last_write_does_not_cancel_it() -> None:
    assert asyncio.run(crossed(last_write=True)) == "ended"


def test_a_renewal_that_crosses_any_other_write_ends_the_job_here() -> None:
    assert asyncio.run(crossed(last_write=False)) == "lease"


def test_a_job_that_redis_left_in_the_lurch_is_given_back_when_it_answers_again() -> None:
    class ReturningQueue:
        def __init__(self) -> None:
            self.answers = False
            self.put_back: list[tuple[str, float]] = []

        async def snooze(self, claimed: Claimed, *, delay_s: float, burns_attempt: bool, hold_lane: bool) -> None:
            if not self.answers:
                raise RedisAway("still away")
            self.put_back.append((claimed.id, delay_s))

    async def scenario() -> None:
        queue = ReturningQueue()
        leases = Leases(cast("Any", queue), Events())
        with pytest.raises(RedisAway):
            async with leases.held(claimed()):
                raise RedisAway("away")
        with pytest.raises(RedisAway):
            await leases.give_back(delay_s=6)
        queue.answers = True
        await leases.give_back(delay_s=6)
        await leases.give_back(delay_s=6)
        assert queue.put_back == [("j", 6)]
        assert leases.unfinished == []

    asyncio.run(scenario())
