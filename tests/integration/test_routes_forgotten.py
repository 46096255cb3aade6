"""Routes that no job takes any more are forgotten; whatever still stands under a route's lane keeps it."""

from __future__ import annotations

import pytest
import redis
from redis.asyncio import Redis

from producer import Producer
from schemas import names
from schemas.lane import Lane
from tests.given import ROUTE, a_job, claimed, release, text, waiting
from worker.queue.queue import JobQueue
from worker.retention.routes import forget_idle_routes

LANE = Lane(workspace="acme", provider="p", model="m1")


@pytest.fixture
def connection(valkey_url: str) -> redis.Redis:
    return redis.Redis.from_url(valkey_url)


def routes(connection: redis.Redis) -> set[str]:
    return {text(route) for route in connection.hkeys(names.ROUTES)}


@pytest.mark.anyio
async def test_routes_of_jobs_that_run_wait_or_snooze_stay_and_others_go(
    redis_client: Redis, producer: Producer, connection: redis.Redis
) -> None:
    queue = JobQueue(redis_client)
    connection.hset(names.ROUTES, mapping={f"acme/gone/r{number}@1": LANE.key for number in range(500)})
    producer.enqueue(a_job("runs"))
    held = await claimed(queue)
    assert await queue.meets(held, LANE)
    producer.enqueue(a_job("waits", model="m2"))
    producer.enqueue(a_job("snoozes", model="m3"))
    for model in ("m2", "m3"):
        connection.hset(names.ROUTES, f"{ROUTE}#{model}", LANE.key)
    assert forget_idle_routes(connection, above=1_000) == 0
    assert forget_idle_routes(connection, above=100) == 500
    assert routes(connection) == {ROUTE, f"{ROUTE}#m2", f"{ROUTE}#m3"}
    connection.close()


@pytest.mark.anyio
async def test_a_job_that_came_since_its_route_was_found_idle_keeps_it(
    redis_client: Redis, producer: Producer, connection: redis.Redis
) -> None:
    queue = JobQueue(redis_client)
    connection.hset(names.ROUTES, mapping={ROUTE: LANE.key, f"{ROUTE}#m2": LANE.key})
    producer.enqueue(a_job("runs"))
    await claimed(queue)
    producer.enqueue(a_job("waits", model="m2"))

    class LooksTooEarly(redis.Redis):
        """Finds no job, as if both had come since."""

        def scan_iter(self, *_args: object, **_more: object) -> object:  # type: ignore[override]
            return iter(())

    early = LooksTooEarly(connection_pool=connection.connection_pool)
    assert forget_idle_routes(early, above=0) == 0
    assert routes(connection) == {ROUTE, f"{ROUTE}#m2"}
    connection.close()


@pytest.mark.anyio
async def test_a_route_that_was_forgotten_is_found_by_its_next_job(
    redis_client: Redis, producer: Producer, connection: redis.Redis
) -> None:
    queue = JobQueue(redis_client)
    connection.hset(names.ROUTES, ROUTE, LANE.key)
    assert forget_idle_routes(connection, above=0) == 1
    producer.enqueue(a_job("next"))
    held = await claimed(queue)
    assert await queue.meets(held, LANE)
    assert routes(connection) == {ROUTE}
    producer.enqueue(a_job("another"))
    assert [hint.job_id for hint in await release(queue, 10)] == ["another"]
    assert await waiting(redis_client) == []
    connection.close()
