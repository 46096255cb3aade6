"""The one subscription of the gateway, on a real Valkey that breaks its connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from producer.gateway import switchboard as switchboards
from producer.gateway.problem import Kind, Problem
from producer.gateway.switchboard import Switchboard
from tests.given import text, until
from tests.servers import OwnValkey

pytestmark = pytest.mark.anyio


@pytest.fixture
async def switchboard(redis_client: Redis) -> AsyncIterator[Switchboard]:
    switchboard = Switchboard(redis_client)
    async with switchboard.running():
        yield switchboard


async def subscribed(redis: Redis) -> set[str]:
    return {text(channel) for channel in await redis.pubsub_channels("c:*")}


async def hears(redis: Redis, event: asyncio.Event, channel: str) -> None:
    """Return once a word on the channel is heard; TimeoutError if it is not."""
    event.clear()
    # One that listens: the switchboard.
    assert await redis.publish(channel, "x") == 1
    async with asyncio.timeout(10):
        await event.wait()


async def test_it_hears_whatever_breaks_its_connection_while_listeners_come_and_go(
    switchboard: Switchboard, redis_client: Redis
) -> None:
    stop, came = asyncio.Event(), 0

    async def come_and_go(number: int) -> None:
        nonlocal came
        while not stop.is_set():
            came += 1
            async with switchboard.listening(f"c:{number}:{came}"):
                pass

    async with switchboard.listening("c:kept") as kept:
        visitors = [asyncio.create_task(come_and_go(number)) for number in range(30)]
        for _ in range(10):
            before = came
            assert await redis_client.execute_command("CLIENT", "KILL", "TYPE", "pubsub") == 1

            async def is_back(before: int = before) -> bool:
                return came > before + 100 and "c:kept" in await subscribed(redis_client)

            await until(is_back)
        stop.set()
        await asyncio.gather(*visitors)
        await hears(redis_client, kept, "c:kept")

        async def only_the_kept() -> bool:
            return await subscribed(redis_client) == {"c:kept"}

        await until(only_the_kept)


async def test_all_who_listen_are_told_to_look_after_a_restart_of_the_server(servers_dir: Path) -> None:
    with OwnValkey(servers_dir / "switchboard") as valkey:
        client = Redis.from_url(valkey.url)
        switchboard = Switchboard(client)
        async with switchboard.running(), switchboard.listening("c:1") as first, switchboard.listening("c:2") as second:
            first.clear()
            second.clear()
            valkey.kill()
            valkey.start()
            async with asyncio.timeout(10):
                await first.wait()
                await second.wait()
            await hears(client, first, "c:1")
        await client.aclose()


async def test_who_cannot_be_subscribed_is_told_503_and_leaves_nothing(
    servers_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with OwnValkey(servers_dir / "switchboard-away") as valkey:
        client = Redis.from_url(valkey.url)
        switchboard = Switchboard(client)
        async with switchboard.running(), switchboard.listening("c:1") as event:
            event.clear()
            valkey.kill()
            with monkeypatch.context() as patched:
                patched.setattr(switchboards, "_SUBSCRIBED_WITHIN_S", 0.01)
                with pytest.raises(Problem) as away:
                    async with switchboard.listening("c:2"):
                        pytest.fail("nobody listens")
            assert (away.value.kind, away.value.code) == (Kind.UNAVAILABLE, "queue_unavailable")
            valkey.start()
            async with asyncio.timeout(10):
                await event.wait()
            assert await subscribed(client) == {"c:1"}
        await client.aclose()


async def test_a_channel_that_is_left_and_wanted_again_at_once_is_heard(
    switchboard: Switchboard, redis_client: Redis
) -> None:
    for _ in range(100):
        async with switchboard.listening("c:1") as event:
            await hears(redis_client, event, "c:1")


async def test_a_thousand_listeners_that_come_at_once_cost_few_commands(
    switchboard: Switchboard, redis_client: Redis
) -> None:
    async def subscribes() -> int:
        stats = await redis_client.info("commandstats")
        return int(stats.get("cmdstat_subscribe", {"calls": 0})["calls"])

    before, leave = await subscribes(), asyncio.Event()

    async def listen(number: int) -> None:
        async with switchboard.listening(f"c:{number}"):
            await leave.wait()

    listeners = [asyncio.create_task(listen(number)) for number in range(1000)]

    async def all_are_there() -> bool:
        return len(await subscribed(redis_client)) == 1000

    await until(all_are_there)
    assert await subscribes() - before <= 3
    leave.set()
    await asyncio.gather(*listeners)
