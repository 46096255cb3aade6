"""One job is called off, wherever it is."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from producer import Producer
from schemas import ProducerError, Status, Usage, names
from tests.given import a_job, a_result, claimed, let_leases_lapse, released, state, waiting
from worker.queue.queue import CalledOff, Claimed, JobQueue
from worker.queue.steps import ReplyStep

pytestmark = pytest.mark.anyio


@pytest.fixture
def queue(redis_client: Redis) -> JobQueue:
    return JobQueue(redis_client)


async def drained(queue: JobQueue) -> list[Claimed]:
    """Return what the workers take past the limits, claimed."""
    held = [await queue.claim(hint) for hint in await queue.drain(100)]
    return [each for each in held if each]


async def end(queue: JobQueue, held: Claimed) -> None:
    status = Status(held.called_off) if held.called_off else Status.SUCCEEDED
    await queue.finish(held, a_result(held.record, status=status, requests=0))


async def test_a_job_that_waits_ends_without_a_turn_and_others_of_its_line_go_on(
    producer: Producer, queue: JobQueue, redis_client: Redis
) -> None:
    for name in ("first", "second", "third"):
        producer.enqueue(a_job(name))
    assert producer.cancel("second")
    assert await waiting(redis_client) == ["first", "third"]
    (held,) = await drained(queue)
    assert (held.id, held.called_off) == ("second", CalledOff.CANCELLED)
    await end(queue, held)
    assert producer.job("second").result(timeout_s=0).status is Status.CANCELLED
    assert [hint.job_id for hint in await released(queue)] == ["first", "third"]


async def test_cancelling_again_changes_nothing_and_a_job_that_ended_keeps_its_end(
    producer: Producer, queue: JobQueue
) -> None:
    handle = producer.enqueue(a_job("j"))
    assert handle.cancel()
    assert handle.cancel()
    (held,) = await drained(queue)
    await end(queue, held)
    assert not handle.cancel()
    assert await queue.drain(10) == []
    with pytest.raises(ProducerError, match="job other is not known"):
        producer.cancel("other")


async def test_a_snoozed_job_ends_before_its_time(producer: Producer, queue: JobQueue, redis_client: Redis) -> None:
    producer.enqueue(a_job("j"))
    await queue.snooze(await claimed(queue), delay_s=3600, burns_attempt=False, hold_lane=False)
    assert producer.cancel("j")
    assert await redis_client.zcard(names.SNOOZED) == 0
    assert [held.called_off for held in await drained(queue)] == [CalledOff.CANCELLED]


async def test_a_job_that_its_thread_blocks_ends_and_those_behind_it_keep_their_turn(
    producer: Producer, queue: JobQueue, redis_client: Redis
) -> None:
    for name in ("first", "second", "third"):
        producer.enqueue(a_job(name, thread_id="t"))
    first = await claimed(queue)
    assert producer.cancel("second")
    (held,) = await drained(queue)
    await end(queue, held)
    assert (await state(redis_client, "third"))["state"] == "blocked"
    await end(queue, first)
    assert (await claimed(queue)).id == "third"


async def test_a_job_that_is_out_hears_of_it_at_its_next_step(producer: Producer, queue: JobQueue) -> None:
    producer.enqueue(a_job("out"))
    (hint,) = await released(queue)
    assert producer.cancel("out")
    held = await queue.claim(hint)
    assert held is not None
    assert held.called_off is CalledOff.CANCELLED
    producer.enqueue(a_job("runs"))
    held = await claimed(queue)
    assert producer.cancel("runs")
    assert await queue.called_off(held) is CalledOff.CANCELLED
    step = ReplyStep(content="x", finish_reason="stop", model="m", usage=Usage())
    assert await queue.append(held, step) is CalledOff.CANCELLED


async def test_a_job_whose_worker_died_after_it_was_cancelled_ends_with_the_next_one(
    producer: Producer, queue: JobQueue, redis_client: Redis
) -> None:
    producer.enqueue(a_job("j"))
    await claimed(queue)
    assert producer.cancel("j")
    await queue.sweep()
    await let_leases_lapse(redis_client)
    await queue.sweep()
    assert [held.called_off for held in await drained(queue)] == [CalledOff.CANCELLED]


async def test_a_row_of_a_batch_is_cancelled_by_itself_and_counted_once(producer: Producer, queue: JobQueue) -> None:
    batch = producer.enqueue_many([a_job(), a_job(thread_id="t"), a_job(thread_id="t")], batch_id="b")
    assert producer.cancel("b.0")
    assert producer.cancel("b.2")
    for held in [*await drained(queue), await claimed(queue)]:
        await end(queue, held)
    status = batch.status()
    assert status is not None
    assert status.counts == {Status.CANCELLED: 2, Status.SUCCEEDED: 1}
    assert set(await queue.ending_batches()) == {"b"}


async def test_a_row_of_a_batch_that_was_cancelled_before_ends_once(producer: Producer, queue: JobQueue) -> None:
    batch = producer.enqueue_many([a_job(), a_job()], batch_id="b")
    batch.cancel()
    assert producer.cancel("b.1")
    for held in await drained(queue):
        await end(queue, held)
    assert await drained(queue) == []
    status = batch.status()
    assert status is not None
    assert status.counts == {Status.CANCELLED: 2}


async def test_a_row_in_a_line_that_is_too_long_to_look_through_ends_at_once_and_never_again(
    producer: Producer, queue: JobQueue, redis_client: Redis
) -> None:
    producer.enqueue_many((a_job() for _ in range(5002)), batch_id="b")
    assert producer.cancel("b.1")
    (held,) = await drained(queue)
    await end(queue, held)
    assert len(await waiting(redis_client)) == 5002  # its name is left behind
    assert [hint.job_id for hint in await released(queue, capacity=2)] == ["b.0", "b.2", "b.3"]


async def test_a_paused_batchs_last_waiting_row_leaves_no_trace_in_its_lane(
    producer: Producer, queue: JobQueue, redis_client: Redis
) -> None:
    producer.enqueue_many([a_job()], batch_id="b")
    producer.batch("b").pause()
    assert producer.cancel("b.0")
    (held,) = await drained(queue)
    await end(queue, held)
    producer.enqueue(a_job("next"))
    assert (await claimed(queue)).id == "next"
    assert await redis_client.keys("aq:line:*") == []


async def test_what_called_a_job_off_first_stands_when_it_is_drained(
    producer: Producer, queue: JobQueue, redis_client: Redis
) -> None:
    producer.enqueue(a_job("j"))
    (hint,) = await released(queue)
    await redis_client.hset(names.job("j"), "called_off", "over_budget")
    held = await queue.claim(hint)
    assert held is not None
    # It comes back, and is drained for the mark that it has.
    await queue.snooze(held, delay_s=0, burns_attempt=False, hold_lane=False)
    (held,) = await drained(queue)
    assert held.called_off is CalledOff.OVER_BUDGET
