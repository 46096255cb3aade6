"""The limiter's scripts in a real Valkey, with a moved clock: never more than the limit, nearly all of it, in order."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from schemas.lane_limits import LaneLimits
from tests.simulated_lane import SimulatedLane, move_clock_by_hand
from worker.limits.turns import Reply

MINUTE_S = 60


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture
def connection(runner: asyncio.Runner, valkey_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Redis]:
    move_clock_by_hand(monkeypatch)
    client = Redis.from_url(valkey_url)
    yield client
    runner.run(client.aclose())


lane_limits = st.builds(
    LaneLimits,
    rpm=st.integers(1, 60),
    tpm=st.integers(1, 600),
    burst_s=st.sampled_from([0.05, 1.0, 7.3, 60.0]),
    shape=st.sampled_from(["smooth", "bucket", "window"]),
    max_concurrency=st.sampled_from([None, None, 1, 5]),
    headroom=st.sampled_from([0.0, 0.3]),
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.floats(0.0005, 1.1)),
        st.tuples(st.just("ask until later"), st.floats(0.0005, 0.3)),
        st.tuples(st.just("settle"), st.sampled_from([0.0, 0.1, 0.5, 1.0, 1.5])),
        st.tuples(st.just("cancel a call"), st.just(0.0)),
        st.tuples(st.just("leave the line"), st.just(0.0)),
        st.tuples(st.just("cool down"), st.floats(0, 20)),
        st.tuples(st.just("kill"), st.just(0.0)),
        st.tuples(st.just("set the clock back"), st.floats(0.01, 4000)),
        st.tuples(st.just("time passes"), st.floats(0, 3)),
        st.tuples(st.just("time passes"), st.floats(3, 90)),
    ),
    min_size=5,
    max_size=40,
)


async def play(lane: SimulatedLane, steps: list[tuple[str, float]], data: Any) -> None:
    async with lane:
        for verb, amount in steps:
            await play_step(lane, verb, amount, data)
            await lane.check_books()
            assert (await lane.books()).in_flight <= (lane.limits.max_concurrency or 10**9)


async def play_step(lane: SimulatedLane, verb: str, amount: float, data: Any) -> None:
    open_calls = [call for call in lane.granted if call.used is None and call.process in lane.turns]
    tokens = max(1, round(amount * lane.limits.usable_tpm))
    match verb:
        case "ask" if lane.turns:
            process = data.draw(st.sampled_from(sorted(lane.turns)), label="process")
            answer = await lane.ask(tokens, process=process)
            assert (answer.reply is Reply.TOO_LARGE) == (tokens > lane.limits.usable_tpm)
        case "ask until later" if lane.turns:
            for _ in range(30):
                if (await lane.ask(tokens)).reply is Reply.LATER:
                    break
        case "settle" if open_calls:
            call = data.draw(st.sampled_from(open_calls), label="call")
            await lane.settle(call, round(call.tokens * amount))
        case "cancel a call" if open_calls:
            await lane.cancel(data.draw(st.sampled_from(open_calls), label="call"))
        case "leave the line" if lane.waiting:
            await lane.cancel(data.draw(st.sampled_from(lane.waiting), label="call"))
        case "cool down" if lane.turns:
            await lane.cool_down(amount)
        case "kill" if len(lane.turns) > 1:
            await lane.kill(data.draw(st.sampled_from(sorted(lane.turns)), label="process"))
        case "set the clock back":
            lane.set_clock_back(amount)
        case "time passes":
            await lane.pass_time(amount)
        case _:
            pass


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(limits=lane_limits, steps=steps, loses_messages=st.booleans(), data=st.data())
def test_whatever_is_asked_settled_given_back_or_killed_no_minute_holds_more_than_the_limit_and_the_books_are_right(
    runner: asyncio.Runner,
    connection: Redis,
    limits: LaneLimits,
    steps: list[tuple[str, float]],
    loses_messages: bool,
    data: Any,
) -> None:
    runner.run(play(SimulatedLane(connection, limits, loses_messages=loses_messages), steps, data))
