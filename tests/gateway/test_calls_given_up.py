"""Which jobs go on when their callers do not: the part of a call that no dialect shows by itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import Request
from redis.asyncio import Redis
from structlog.testing import capture_logs

from producer.gateway.calls import Calls
from producer.gateway.obstacles import Obstacles
from producer.gateway.problem import Kind, Problem
from producer.gateway.switchboard import Switchboard
from producer.gateway.waiters import Waiters
from schemas import names
from schemas.stream import PART_FIELD, Begun, StreamPart, TextPart
from tests.given import a_job, state, until
from tests.servers import OwnValkey

pytestmark = pytest.mark.anyio


class Client:
    """The other end of a connection."""

    def __init__(self) -> None:
        self.left = asyncio.Event()
        sent = [(b"idempotency-key", b"k")]
        self.request = Request({"type": "http", "method": "POST", "path": "/", "headers": sent}, self._receive)

    async def _receive(self) -> Any:
        await self.left.wait()
        return {"type": "http.disconnect"}


@pytest.fixture
def waiters(redis_client: Redis) -> Waiters:
    return Waiters(redis_client)


@pytest.fixture
async def calls(redis_client: Redis, waiters: Waiters) -> AsyncIterator[Calls]:
    switchboard = Switchboard(redis_client)
    async with switchboard.running():
        yield Calls(redis_client, switchboard, Obstacles(redis_client), waiters, timeout_s=60)


async def called_off(waiters: Waiters, redis_client: Redis, job_id: str) -> bool:
    """Return whether the job is to end, after all that the call had to do."""
    await waiters.aclose()
    return "called_off" in await state(redis_client, job_id)


async def until_enqueued(redis_client: Redis, job_id: str) -> None:
    await until(lambda: redis_client.exists(names.job(job_id)))


async def tell(redis_client: Redis, job_id: str, *parts: StreamPart) -> None:
    for number, part in enumerate(parts):
        # As the first epoch's worker tells them.
        await redis_client.xadd(names.parts(job_id), {PART_FIELD: part.model_dump_json()}, id=f"1-{number}")
    await redis_client.publish(names.done_channel(job_id), "part")


async def test_the_job_of_a_caller_who_left_is_called_off_unless_it_will_be_found_again(
    calls: Calls, waiters: Waiters, redis_client: Redis
) -> None:
    # The header alone says nothing: a dialect may not know it.
    for job_id, findable in (("j", False), ("k", True)):
        client = Client()
        answer = asyncio.create_task(calls.answer(a_job(job_id), client.request, findable=findable))
        await until_enqueued(redis_client, job_id)
        client.left.set()
        with pytest.raises(Problem) as left:
            await answer
        assert left.value.kind is Kind.CLIENT_GONE
        assert await called_off(waiters, redis_client, job_id) is not findable


async def test_a_stream_that_is_closed_calls_its_job_off(calls: Calls, waiters: Waiters, redis_client: Redis) -> None:
    parts = calls.stream(a_job("j", tell="stream"), Client().request)
    coming = asyncio.ensure_future(anext(parts))
    await until_enqueued(redis_client, "j")
    await tell(redis_client, "j", Begun(epoch=1, steps=0, model="m"), TextPart(step=0, text="Hel"))
    assert await coming == TextPart(step=0, text="Hel")
    assert not await called_off(waiters, redis_client, "j")
    await parts.aclose()
    assert await called_off(waiters, redis_client, "j")


async def test_a_stream_whose_client_left_between_two_parts_ends_and_calls_its_job_off(
    calls: Calls, waiters: Waiters, redis_client: Redis
) -> None:
    client = Client()
    parts = calls.stream(a_job("j", tell="stream"), client.request)
    coming = asyncio.ensure_future(anext(parts))
    await until_enqueued(redis_client, "j")
    client.left.set()
    with pytest.raises(Problem, match="the client left"):
        await coming
    assert await called_off(waiters, redis_client, "j")


async def test_who_comes_while_the_gateway_shuts_down_is_sent_away_and_its_job_with_it(
    calls: Calls, waiters: Waiters, redis_client: Redis
) -> None:
    calls.shut()
    with pytest.raises(Problem, match="shuts down"):
        await calls.answer(a_job("j"), Client().request)
    assert await called_off(waiters, redis_client, "j")


async def test_the_job_of_a_caller_who_left_while_the_server_was_away_is_called_off_when_it_is_back(
    servers_dir: Path,
) -> None:
    with OwnValkey(servers_dir / "away", appendfsync="always") as valkey:
        redis = Redis.from_url(valkey.url)
        switchboard, waiters, client = Switchboard(redis), Waiters(redis), Client()
        async with switchboard.running():
            calls = Calls(redis, switchboard, Obstacles(redis), waiters, timeout_s=60)
            answer = asyncio.create_task(calls.answer(a_job("j"), client.request))
            await until_enqueued(redis, "j")
            valkey.kill()

            async def one_try_has_failed() -> bool:
                return any(each["event"] == "cancellations_wait" for each in logged)

            with capture_logs() as logged:
                client.left.set()
                with pytest.raises(Problem):
                    await answer
                await until(one_try_has_failed, within_s=30)
            valkey.start()
            assert await called_off(waiters, redis, "j")
        await redis.aclose()


async def test_who_comes_while_the_queues_memory_is_full_is_told_so(servers_dir: Path) -> None:
    with OwnValkey(servers_dir / "full") as valkey:
        redis = Redis.from_url(valkey.url)
        switchboard, waiters = Switchboard(redis), Waiters(redis)
        async with switchboard.running():
            calls = Calls(redis, switchboard, Obstacles(redis), waiters, timeout_s=60)
            with valkey.memory_full(), pytest.raises(Problem, match="memory is full") as full:
                await calls.answer(a_job("j"), Client().request)
            assert (full.value.kind, full.value.code) == (Kind.UNAVAILABLE, "queue_full")
            await waiters.aclose()
        await redis.aclose()


async def test_only_a_call_that_nobody_could_find_again_is_kept_by_being_waited_for(
    calls: Calls, redis_client: Redis
) -> None:
    answers = [
        asyncio.create_task(calls.answer(a_job(job_id), Client().request, findable=job_id == "findable"))
        for job_id in ("waited-for", "findable")
    ]
    for job_id in ("waited-for", "findable"):
        await until_enqueued(redis_client, job_id)
    assert await redis_client.zrange(names.WAITERS, 0, -1) == [b"waited-for"]
    for answer in answers:
        answer.cancel()
    await asyncio.gather(*answers, return_exceptions=True)
