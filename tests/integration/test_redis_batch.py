"""Script calls that travel together, on a real Valkey: each caller gets its own answer or error."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from redis import ResponseError
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from worker.redis_batch import BatchedRedis

pytestmark = pytest.mark.anyio

ECHO = "return {KEYS[1], ARGV[1]}"
COUNT = "return redis.call('INCR', KEYS[1])"
FAIL = "return redis.error_reply('NO ' .. ARGV[1])"


@pytest.fixture
async def batched(valkey_url: str) -> AsyncIterator[BatchedRedis]:
    client = BatchedRedis.from_url(valkey_url, retry=Retry(NoBackoff(), 3))
    yield client
    await client.aclose()


async def calls_served(redis_client: Redis) -> int:
    """Return how many reads the server's event loop has done for clients, which a pipeline saves."""
    return int((await redis_client.info("stats"))["total_reads_processed"])


async def test_each_caller_gets_its_own_answer(batched: BatchedRedis) -> None:
    echo = batched.register_script(ECHO)
    answers = await asyncio.gather(*(echo(keys=[f"k{n}"], args=[n]) for n in range(300)))
    assert answers == [[f"k{n}".encode(), str(n).encode()] for n in range(300)]


async def test_calls_of_one_moment_travel_together(batched: BatchedRedis, redis_client: Redis) -> None:
    count = batched.register_script(COUNT)
    await count(keys=["n"])
    before = await calls_served(redis_client)
    await asyncio.gather(*(count(keys=["n"]) for _ in range(100)))
    assert await calls_served(redis_client) - before < 20
    assert await redis_client.get("n") == b"101"


async def test_an_error_is_its_callers_alone(batched: BatchedRedis) -> None:
    echo, fail = batched.register_script(ECHO), batched.register_script(FAIL)
    answers = await asyncio.gather(
        echo(keys=["a"], args=[1]), fail(args=["good"]), echo(keys=["b"], args=[2]), return_exceptions=True
    )
    assert answers[0] == [b"a", b"1"]
    assert isinstance(answers[1], ResponseError)
    assert "good" in str(answers[1])
    assert answers[2] == [b"b", b"2"]


async def test_a_server_that_forgot_its_scripts_is_told_them_again_and_each_call_runs_once(
    batched: BatchedRedis, redis_client: Redis
) -> None:
    count, echo = batched.register_script(COUNT), batched.register_script(ECHO)
    for _ in range(2):
        await redis_client.script_flush()
        calls = [count(keys=["n"]) for _ in range(10)]
        *_, last = await asyncio.gather(*calls, echo(keys=["k"], args=["v"]))
        assert last == [b"k", b"v"]
    assert await redis_client.get("n") == b"20"


async def test_after_a_cut_connection_every_caller_is_answered_with_its_own(
    batched: BatchedRedis, redis_client: Redis
) -> None:
    echo = batched.register_script(ECHO)
    own_id = await redis_client.client_id()
    for round_ in range(20):
        calls = [asyncio.create_task(echo(keys=[f"k{round_}"], args=[n])) for n in range(50)]
        for client in await redis_client.client_list():
            if int(client["id"]) != own_id:
                await redis_client.client_kill_filter(_id=client["id"])
        assert [int(answer[1]) for answer in await asyncio.gather(*calls)] == list(range(50))


async def test_a_call_through_a_pipeline_of_the_callers_own_is_that_pipelines(batched: BatchedRedis) -> None:
    count = batched.register_script(COUNT)
    async with batched.pipeline(transaction=True) as pipe:
        await count(keys=["n"], client=pipe)
        await count(keys=["n"], client=pipe)
        assert await pipe.execute() == [1, 2]
