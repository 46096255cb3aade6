"""Worker processes learn from each other through a real Valkey, and so does the next one after a restart."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from redis.asyncio import Redis

from schemas import names
from schemas.chat import Usage
from tests.given import text, user
from worker.errors import RedisAway
from worker.events import Event, Events, ServiceFault
from worker.limits import estimate_exchange
from worker.limits.estimate_exchange import KEPT_S, EstimateExchange
from worker.limits.learned import HALVE_AT, SEEN_MIN, EstimateKey, Estimates, halved
from worker.providers.base import ChatRequest

pytestmark = pytest.mark.anyio

KEY = EstimateKey(assistant="acme/reviews/sentiment", version="1", output="", model="m1")
ASKED = ChatRequest(model="m1", messages=(user("Review: good"),), max_tokens=500)


class Process:
    """One worker process's estimates."""

    def __init__(self, redis: Redis) -> None:
        self.estimates = Estimates()
        self.told: list[Event] = []
        self.exchange = EstimateExchange(redis, self.estimates, Events(self.told.append))

    def use(self, size: int, times: int, *, key: EstimateKey = KEY) -> None:
        for _ in range(times):
            expected = self.estimates.expect(ASKED, key)
            self.estimates.learn(key, expected, Usage(prompt_tokens=expected.counted, completion_tokens=size))

    def completion(self, key: EstimateKey = KEY) -> int:
        return self.estimates.expect(ASKED, key).completion


@pytest.fixture
def process(redis_client: Redis) -> Callable[[], Process]:
    return lambda: Process(redis_client)


async def counts(redis: Redis) -> dict[str, int]:
    """Return what Redis holds."""
    return {text(name): int(count) for name, count in (await redis.hgetall(names.seen(str(KEY)))).items()}


async def total(redis: Redis, kind: str = "c") -> int:
    return sum(count for name, count in (await counts(redis)).items() if name.startswith(kind))


async def test_each_learns_from_what_the_others_saw(process: Callable[[], Process]) -> None:
    one, two = process(), process()
    one.use(20, SEEN_MIN // 2)
    two.use(20, SEEN_MIN // 2)
    assert (one.completion(), two.completion()) == (500, 500)
    await one.exchange.exchange()
    await two.exchange.exchange()
    assert (one.completion(), two.completion()) == (500, 20)
    one.use(20, 4)
    await one.exchange.exchange()
    assert one.completion() == 20


async def test_a_process_that_starts_knows_what_was_learned(process: Callable[[], Process]) -> None:
    before = process()
    before.use(20, SEEN_MIN)
    await before.exchange.exchange()
    after = process()
    assert after.completion() == 500
    await after.exchange.exchange()
    assert after.completion() == 20
    assert after.estimates.expect(ASKED, KEY).prompt == pytest.approx(before.estimates.expect(ASKED, KEY).prompt)


async def test_what_was_seen_is_told_once(process: Callable[[], Process], redis_client: Redis) -> None:
    one = process()
    one.use(20, 10)
    await one.exchange.exchange()
    await one.exchange.exchange(all_news=True)
    assert (await total(redis_client), await total(redis_client, "p")) == (10, 10)
    one.use(20, 5)
    await one.exchange.exchange()
    assert await total(redis_client) == 15


async def test_the_last_calls_of_a_process_are_told_when_it_ends(
    process: Callable[[], Process], redis_client: Redis
) -> None:
    one = process()
    one.use(20, 2)
    await one.exchange.exchange()
    assert await total(redis_client) == 0
    await one.exchange.exchange(all_news=True)
    assert await total(redis_client) == 2


async def test_all_keys_go_in_few_scripts_and_none_when_there_is_no_news(
    process: Callable[[], Process], redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate_exchange, "_KEYS_AT_ONCE", 100)
    one = process()
    await one.exchange.exchange()
    keys = [EstimateKey("acme/p/a", str(number), "", "m1") for number in range(250)]
    for number, key in enumerate(keys):
        one.use(number + 1, SEEN_MIN, key=key)
    calls = await calls_of_scripts(redis_client)
    await one.exchange.exchange()
    # The server did not have the script yet: it was asked to once more.
    assert await calls_of_scripts(redis_client) - calls <= 4
    another = process()
    for key in keys:
        another.completion(key)
    await another.exchange.exchange()
    assert [another.completion(key) for key in keys] == [one.completion(key) for key in keys]
    calls = await calls_of_scripts(redis_client)
    await one.exchange.exchange()
    assert await calls_of_scripts(redis_client) == calls


async def test_what_is_full_is_halved_and_keeps_its_shape(process: Callable[[], Process], redis_client: Redis) -> None:
    one = process()
    for size in range(1, 201):
        one.use(size, 1)
    whole = one.estimates.to_exchange()[KEY]
    await one.exchange.exchange()
    two = process()
    for size in range(101, 201):
        two.use(size, 1)
    more = two.estimates.to_exchange()[KEY]
    await two.exchange.exchange()
    expected = halved({name: whole.get(name, 0) + more.get(name, 0) for name in {*whole, *more}})
    assert await counts(redis_client) == expected
    assert await total(redis_client) == 150
    assert 200 < HALVE_AT < 300


async def test_what_nobody_calls_any_more_is_forgotten(process: Callable[[], Process], redis_client: Redis) -> None:
    one = process()
    one.use(20, 10)
    await one.exchange.exchange()
    assert 0 < await redis_client.ttl(names.seen(str(KEY))) <= KEPT_S


async def test_while_redis_is_away_what_was_seen_is_kept(process: Callable[[], Process], redis_client: Redis) -> None:
    one = process()
    one.use(20, SEEN_MIN)
    await redis_client.set(names.seen(str(KEY)), "of another kind")
    with pytest.raises(RedisAway):
        await one.exchange.exchange()
    assert one.completion() == 20
    await redis_client.delete(names.seen(str(KEY)))
    await one.exchange.exchange()
    assert await total(redis_client) == SEEN_MIN


async def test_a_fault_does_not_end_the_loop(
    process: Callable[[], Process], redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = process()
    rounds = iter([RedisAway("away"), ValueError("ours"), None])

    class Enough(BaseException):
        pass

    async def exchange() -> None:
        fault = next(rounds, Enough())
        if fault is not None:
            raise fault

    monkeypatch.setattr(one.exchange, "exchange", exchange)
    monkeypatch.setattr(estimate_exchange, "EXCHANGE_EVERY_S", 0)
    with pytest.raises(Enough):
        await one.exchange.exchange_forever()
    assert [(event.part, event.error) for event in one.told if isinstance(event, ServiceFault)] == [
        ("redis", "estimates: away"),
        ("estimates", "ValueError: ours"),
    ]


async def calls_of_scripts(redis: Redis) -> int:
    stats = await redis.info("commandstats")
    return sum(int(stats.get(f"cmdstat_{name}", {}).get("calls", 0)) for name in ("evalsha", "eval"))
