"""The parts of a running job in a real Valkey: in order, once each, from one worker only."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from redis.asyncio import Redis

from producer import Producer
from schemas import names
from schemas.chat import Usage
from schemas.stream import PART_FIELD, STREAM_PART, StepEnded, StreamPart, TextPart, ToolCallPart
from tests.given import a_job, a_result, claimed, let_leases_lapse, until
from worker.queue.queue import Claimed, JobQueue
from worker.queue.telling import Telling, telling

pytestmark = pytest.mark.anyio


@pytest.fixture
def queue(redis_client: Redis) -> JobQueue:
    return JobQueue(redis_client)


class HeldQueue(JobQueue):
    """Lets no part through until it may."""

    def __init__(self, redis: Redis) -> None:
        super().__init__(redis)
        self.may = asyncio.Event()
        self.asked: list[Sequence[StreamPart]] = []

    async def tell(self, claimed: Claimed, parts: Sequence[StreamPart], *, first: int) -> bool:
        self.asked.append(parts)
        await self.may.wait()
        return await super().tell(claimed, parts, first=first)


def said(text: str, *, index: int = 0) -> TextPart:
    return TextPart(step=0, text=text, index=index)


async def told(redis: Redis, job_id: str) -> dict[str, StreamPart]:
    entries: Any = await redis.xrange(names.parts(job_id))
    return {entry.decode(): STREAM_PART.validate_json(fields[PART_FIELD.encode()]) for entry, fields in entries}


async def test_a_part_that_is_sent_twice_is_told_once(producer: Producer, queue: JobQueue, redis_client: Redis) -> None:
    producer.enqueue(a_job("j"))
    held = await claimed(queue)
    # As after an answer that was lost.
    assert await queue.tell(held, [said("a"), said("b")], first=0)
    assert await queue.tell(held, [said("a"), said("b"), said("c")], first=0)
    assert await told(redis_client, "j") == {f"{held.epoch}-{at}": said(text) for at, text in enumerate("abc")}
    assert 0 < await redis_client.ttl(names.parts("j")) <= names.PARTS_TTL_S


async def test_a_worker_that_lost_the_job_tells_no_more(
    producer: Producer, queue: JobQueue, redis_client: Redis
) -> None:
    producer.enqueue(a_job("j"))
    old = await claimed(queue)
    await queue.tell(old, [said("old")], first=0)
    await let_leases_lapse(redis_client)
    await queue.sweep()
    new = await claimed(queue)
    assert not await queue.tell(old, [said("stale")], first=1)
    assert await queue.tell(new, [said("new")], first=0)
    await queue.finish(new, a_result(new.record))
    assert not await queue.tell(new, [said("late")], first=1)
    assert [part.text for part in (await told(redis_client, "j")).values() if isinstance(part, TextPart)] == [
        "old",
        "new",
    ]


async def test_what_comes_while_a_write_is_on_its_way_is_joined_and_keeps_its_order(
    producer: Producer, redis_client: Redis
) -> None:
    queue = HeldQueue(redis_client)
    producer.enqueue(a_job("j"))
    held = await claimed(queue)
    ended = StepEnded(step=0, finish_reason="stop", usage=Usage())
    async with telling(queue, held) as parts:
        parts.tell(said("first"))
        await until(lambda: _true(queue.asked))
        for number in range(1000):
            parts.tell(said(f"{number},"))
            parts.tell(said("x", index=1))
            parts.tell(ToolCallPart(step=0, position=0, arguments="y"))
        parts.tell(ended)
        parts.tell(said("after"))
        queue.may.set()
    assert list((await told(redis_client, "j")).values()) == [
        said("first"),
        said("".join(f"{number}," for number in range(1000))),
        said("x" * 1000, index=1),
        ToolCallPart(step=0, position=0, arguments="y" * 1000),
        ended,
        said("after"),
    ]


async def test_the_end_of_a_run_does_not_wait_for_a_redis_that_does_not_answer(
    producer: Producer, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.queue.telling._LAST_WORDS_WITHIN_S", 0.01)
    queue = HeldQueue(redis_client)
    producer.enqueue(a_job("j"))
    async with telling(queue, await claimed(queue)) as parts:
        parts.tell(said("never"))
    assert await told(redis_client, "j") == {}


async def test_once_the_job_is_lost_what_is_told_is_not_kept(producer: Producer, queue: JobQueue) -> None:
    producer.enqueue(a_job("j"))
    held = await claimed(queue)
    await queue.finish(held, a_result(held.record))
    parts = Telling(queue, held)
    parts.tell(said("stale"))
    await parts.write_forever()
    parts.tell(said("more"))
    assert not parts._waiting


async def _true(value: object) -> object:
    return value
