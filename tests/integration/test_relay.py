"""The relay of a job's parts, out of a real Valkey."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest
from redis.asyncio import Redis

from producer.gateway.streams import LostReply, Relay
from schemas import names
from schemas.outcome import Status
from schemas.result import JobResult
from schemas.stream import PART_FIELD, Begun, StreamPart, TextPart

pytestmark = pytest.mark.anyio

RESULT = JobResult(
    job_id="j", status=Status.SUCCEEDED, assistant="w/p/a", output="Hello!", requests=1, finished_at=datetime.now(UTC)
)


def begun(steps: int = 0) -> Begun:
    return Begun(epoch=1, steps=steps, model="m")


def said(text: str) -> TextPart:
    return TextPart(step=0, text=text)


async def tell(redis: Redis, **parts: StreamPart) -> None:
    """Put parts into the stream, by their entries' ids: `e1_0` is the first of epoch 1."""
    for entry, part in parts.items():
        entry_id = entry.removeprefix("e").replace("_", "-")
        await redis.xadd(names.parts("j"), {PART_FIELD: part.model_dump_json()}, id=entry_id)


async def relayed(redis: Redis) -> list[StreamPart | JobResult]:
    relay = Relay(redis, "j", asyncio.Event(), timeout_s=10)
    return [part async for part in relay.parts()]


async def end(redis: Redis) -> None:
    await redis.set(names.result("j"), RESULT.model_dump_json())


async def test_what_follows_on_a_part_that_is_missing_comes_from_the_result(redis_client: Redis) -> None:
    await tell(redis_client, e1_0=begun(), e1_1=said("Hel"), e1_3=said("!"))
    await end(redis_client)
    assert await relayed(redis_client) == [said("Hel"), said("lo!"), RESULT]


async def test_a_stream_that_is_gone_comes_from_the_result(redis_client: Redis) -> None:
    await end(redis_client)
    assert await relayed(redis_client) == [said("Hello!"), RESULT]


async def test_a_reply_that_begins_anew_is_lost_if_something_of_it_was_relayed(redis_client: Redis) -> None:
    await tell(redis_client, e1_0=begun(), e2_0=begun(), e2_1=said("Hello!"))
    await end(redis_client)
    assert await relayed(redis_client) == [said("Hello!"), RESULT]
    await redis_client.delete(names.parts("j"))
    await tell(redis_client, e1_0=begun(), e1_1=said("Hel"), e2_0=begun())
    with pytest.raises(LostReply):
        await relayed(redis_client)


async def test_more_parts_than_are_taken_at_once_come_before_the_result(redis_client: Redis) -> None:
    await tell(redis_client, e1_0=begun(), **{f"e1_{number}": said(".") for number in range(1, 200)})
    await redis_client.set(names.result("j"), RESULT.model_copy(update={"output": "." * 199}).model_dump_json())
    assert len(await relayed(redis_client)) == 200


async def test_a_reader_who_comes_after_all_is_gone_is_told_at_once_that_it_is_lost(redis_client: Redis) -> None:
    with pytest.raises(LostReply):
        await relayed(redis_client)
