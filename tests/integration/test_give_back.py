"""A worker that shuts down gives the jobs that it no longer takes back at once."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from producer import Producer
from schemas import names
from tests.given import a_job, release, released, state, waiting
from worker.queue.queue import Hint, JobQueue

pytestmark = pytest.mark.anyio


@pytest.fixture
def queue(redis_client: Redis) -> JobQueue:
    return JobQueue(redis_client)


async def test_a_job_that_is_given_back_is_the_next_one_and_its_hint_is_stale(
    producer: Producer, queue: JobQueue, redis_client: Redis
) -> None:
    for job_id in ("first", "second"):
        producer.enqueue(a_job(job_id))
    await queue.heartbeat("a-worker", capacity=1, ttl_s=60)
    (hint,) = await release(queue, 1)
    assert hint.job_id == "first"
    assert await queue.give_back(hint)
    assert await waiting(redis_client) == ["first", "second"]
    assert await redis_client.zcard(names.LEASES) == 0
    assert await queue.claim(hint) is None

    again, *_ = await released(queue)
    assert (again.job_id, again.epoch) == ("first", hint.epoch + 1)
    assert await queue.claim(again) is not None


async def test_a_job_that_runs_or_was_released_again_or_has_ended_is_not_given_back(
    producer: Producer, queue: JobQueue, redis_client: Redis
) -> None:
    producer.enqueue(a_job("j"))
    (hint,) = await released(queue)
    assert await queue.claim(hint) is not None
    assert not await queue.give_back(hint)
    assert not await queue.give_back(Hint(job_id="j", epoch=hint.epoch + 1))
    assert not await queue.give_back(Hint(job_id="gone", epoch=1))
    assert (await state(redis_client, "j"))["state"] == "running"
    assert await waiting(redis_client) == []
