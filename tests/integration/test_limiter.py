"""The limiter's scripts in a real Valkey, with a moved clock: never more than the limit, nearly all of it, in order."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from schemas import names
from schemas.lane_limits import LaneLimits
from schemas.quota_told import QuotaTold
from tests.given import text
from tests.simulated_lane import CLOCK, HOLD_S, Call, SimulatedLane, move_clock_by_hand
from worker.limits import turns
from worker.limits.turns import Reply

MINUTE_S = 60
SHAPES: tuple[Literal["smooth", "bucket", "window"], ...] = ("smooth", "bucket", "window")


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


def test_a_call_that_ends_after_its_tokens_flowed_back_does_not_fill_the_bucket_twice(
    runner: asyncio.Runner, connection: Redis
) -> None:
    async def check() -> None:
        async with SimulatedLane(connection, LaneLimits(rpm=10_000, tpm=600, burst_s=60, shape="bucket")) as lane:
            await lane.ask(300)
            await lane.pass_time(30)
            await lane.ask(150)
            await lane.pass_time(1)
            await lane.settle(lane.granted[0], 0)
            # The first one's 300 had flowed back already: what is left is audited with each grant.
            for _ in range(80):
                await lane.ask(10)
            assert len(lane.granted) - 2 == 597 // 10 - 14

    runner.run(check())


def test_what_was_not_used_can_be_had_at_once_as_long_as_it_is_owed(runner: asyncio.Runner, connection: Redis) -> None:
    async def check() -> None:
        async with SimulatedLane(connection, LaneLimits(rpm=10_000, tpm=600, burst_s=60, shape="bucket")) as lane:
            await lane.ask(590)
            await lane.settle(lane.granted[0], 90)
            await lane.ask(500)
            assert len(lane.granted) == 2

    runner.run(check())


def test_a_bucket_that_was_never_full_meanwhile_takes_everything_back(
    runner: asyncio.Runner, connection: Redis
) -> None:
    async def check() -> None:
        async with SimulatedLane(connection, LaneLimits(rpm=10_000, tpm=600, burst_s=60, shape="bucket")) as lane:
            await lane.ask(580)
            for _ in range(10):
                await lane.pass_time(1)
                await lane.ask(10)
            # It has flowed back for 10 s, and 10 s' worth was had again.
            await lane.settle(lane.granted[0], 0)
            await lane.ask(580)
            assert len(lane.granted) == 12

    runner.run(check())


def test_more_used_than_reserved_is_a_debt(runner: asyncio.Runner, connection: Redis) -> None:
    async def check() -> None:
        for shape in SHAPES:
            async with SimulatedLane(connection, LaneLimits(rpm=1000, tpm=600, burst_s=60, shape=shape)) as lane:
                await lane.ask(100)
                await lane.settle(lane.granted[0], 590)
                assert (await lane.ask(50)).wait_s > 1
                await lane.check_books()

    runner.run(check())


async def work(lane: SimulatedLane, *, seconds: int, reserve: int, used: int, takes_s: float) -> list[Call]:
    """Ask as soon as there is room in the line, settle each call after it ended; return the calls in their order."""
    settled = 0
    until_us = lane.now_us + seconds * 1_000_000
    asks_at_us = 0
    while lane.now_us < until_us:
        while asks_at_us <= lane.now_us:
            answer = await lane.ask(reserve)
            if answer.reply is Reply.LATER:
                asks_at_us = lane.now_us + answer.amount
        ends_at_us = until_us
        while settled < len(lane.granted):
            call = lane.granted[settled]
            assert call.at_us is not None
            ends_at_us = call.at_us + round(takes_s * 1e6)
            if ends_at_us > lane.now_us:
                break
            await lane.settle(call, used)
            settled += 1
        await lane.pass_time(max(0.001, (min(ends_at_us, asks_at_us, until_us) - lane.now_us) / 1e6), sweeps=False)
    return lane.granted


@pytest.mark.parametrize(
    ("limits", "reserve", "used", "ideal"),
    [
        pytest.param(LaneLimits(rpm=3), 100, 100, 3, id="few requests"),
        pytest.param(LaneLimits(rpm=200), 100, 100, 200, id="requests bind"),
        pytest.param(LaneLimits(burst_s=0.05), 2000, 2000, 30, id="each is larger than the burst"),
        pytest.param(LaneLimits(tpm=6_000, burst_s=10), 100, 100, 60, id="a long burst"),
        pytest.param(LaneLimits(tpm=6_000, burst_s=60), 100, 100, 60, id="a minute's burst"),
        # 300, less what is in flight and counts as reserved
        pytest.param(LaneLimits(tpm=12_000), 60, 40, 295, id="a third is given back"),
        pytest.param(LaneLimits(rpm=60, burst_s=60, shape="bucket"), 10, 10, 60, id="a bucket"),
        pytest.param(LaneLimits(rpm=60, shape="window"), 10, 10, 60, id="a window"),
    ],
)
def test_a_lane_that_is_always_asked_uses_up_its_limit(
    runner: asyncio.Runner, connection: Redis, limits: LaneLimits, reserve: int, used: int, ideal: int
) -> None:
    async def check() -> None:
        minutes = 5
        async with SimulatedLane(connection, limits) as lane:
            began_us = lane.now_us
            calls = await work(lane, seconds=60 * (minutes + 1), reserve=reserve, used=used, takes_s=0.5)
            # The steady state: without the burst of the first minute. That it is no more is audited with each call.
            at_s = [(call.at_us - began_us) / 1e6 for call in calls if call.at_us is not None]
            steady = [second for second in at_s if second >= MINUTE_S]
            span_s = steady[-1] - steady[0]
            if limits.shape == "window":
                assert len(steady) >= 0.995 * (ideal * minutes - 1)
            else:
                assert (len(steady) - 1) / span_s * MINUTE_S >= 0.995 * ideal
            await lane.check_books()

    runner.run(check())


@pytest.mark.parametrize("shape", SHAPES)
def test_small_calls_do_not_starve_a_large_one(
    runner: asyncio.Runner, connection: Redis, shape: Literal["smooth", "bucket", "window"]
) -> None:
    async def check() -> None:
        async with SimulatedLane(connection, LaneLimits(rpm=10_000, tpm=600, shape=shape)) as lane:
            while (await lane.ask(10)).reply is not Reply.LATER:
                pass
            large: Reply | None = None
            for _ in range(70):
                if large is not Reply.WAIT:
                    large = (await lane.ask(600)).reply
                for _ in range(20):
                    await lane.ask(10)
                await lane.pass_time(1)
            assert large is Reply.WAIT
            await lane.pass_time(70)
            assert 600 in [call.tokens for call in lane.granted]

    runner.run(check())


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    limits=lane_limits.filter(lambda limits: limits.usable_tpm >= 20),
    asked=st.integers(1, 60),
    passed_s=st.lists(st.floats(0, 30), max_size=4),
    horizon_s=st.sampled_from([0.0, 0.5, 2.0]),
    entering=st.integers(0, 10),
)
def test_the_room_of_a_lane_is_what_is_granted_then(
    runner: asyncio.Runner,
    connection: Redis,
    limits: LaneLimits,
    asked: int,
    passed_s: list[float],
    horizon_s: float,
    entering: int,
) -> None:
    async def check() -> None:
        async with SimulatedLane(connection, limits) as lane:
            size = max(1, limits.usable_tpm // 20)
            for seconds in [0.0, *passed_s]:
                await lane.pass_time(seconds)
                for _ in range(asked):
                    await lane.ask(size)
                if limits.max_concurrency is None:
                    for call in [call for call in lane.granted if call.used is None]:
                        await lane.settle(call, size)
            jobs, retry_us = await room(lane, horizon_s, entering)
            # Never too late, and too early only where both rules bind in turn.
            for _ in range(10 * (limits.max_concurrency is None and entering == 0)):
                if jobs:
                    break
                assert retry_us > 0
                await lane.pass_time(retry_us / 1e6 + 1e-5)
                jobs, retry_us = await room(lane, horizon_s, entering)
            assert jobs or limits.max_concurrency or entering, "there was room when it was said to be"
            if jobs == 0 and entering:
                return  # they did not enter after all
            for number in range(min(jobs, 70) + entering):
                answer = await lane.ask(size)
                if number >= entering:
                    assert answer.reply in {Reply.GRANTED, Reply.WAIT}
                    assert answer.reply is Reply.GRANTED or answer.wait_s <= horizon_s + 1e-4
            answer = await lane.ask(size)
            if jobs < 70 and answer.reply is not Reply.LATER:
                assert answer.reply is Reply.WAIT
                # When a place becomes free is not known.
                assert limits.max_concurrency or answer.wait_s > horizon_s - 1e-4

    runner.run(check())


def test_who_waits_goes_back_to_the_line_when_the_lane_cools_down_for_long(
    runner: asyncio.Runner, connection: Redis
) -> None:
    async def check() -> None:
        async with SimulatedLane(connection, LaneLimits(rpm=60, burst_s=0.1)) as lane:
            await lane.ask(10)
            assert (await lane.ask(10)).reply is Reply.WAIT
            await lane.cool_down(3600)
            await lane.pass_time(2)
            assert not lane.waiting
            assert (await lane.books()).tickets == []

    runner.run(check())


def test_after_a_time_without_a_look_nobody_is_taken_for_dead_until_all_could_tell(
    runner: asyncio.Runner, connection: Redis
) -> None:
    async def check() -> None:
        async with SimulatedLane(connection, LaneLimits(max_concurrency=1)) as lane:
            await lane.pass_time(1)
            await lane.ask(10)
            # Redis was away: no heartbeat is newer, and no look was had.
            await lane.pass_time(60, sweeps=False)
            for _ in range(3):
                await lane.turns["p1"].expire()
            assert (await lane.books()).in_flight == 1
            await lane.pass_time(20)
            assert (await lane.books()).in_flight == 1

    runner.run(check())


@pytest.mark.parametrize(("late_s", "leaves_after_s"), [(0.1, 60.25), (1.5, 61.75)])
def test_a_call_that_was_sent_late_leaves_the_window_as_late(
    runner: asyncio.Runner, connection: Redis, late_s: float, leaves_after_s: float
) -> None:
    async def check() -> None:
        async with SimulatedLane(connection, LaneLimits(rpm=1, shape="window")) as lane:
            await lane.ask(10)
            await lane.pass_time(2)
            ticket = lane.granted[0].ticket
            await lane.turns["p1"].settle(lane.lane, ticket, used_tokens=7, late_s=late_s, fault_over=True)
            books = await lane.books()
            assert (books.requests, books.tokens) == (1, 7)
            assert (books.requests, books.tokens) == tuple(sum(cell[at] for cell in books.cells) for at in (1, 2))
            jobs, retry_us = await room(lane, 0, 0)
            assert jobs == 0
            assert retry_us >= (leaves_after_s - 2) * 1e6
            await lane.pass_time(leaves_after_s)
            assert (await room(lane, 0, 0))[0] == 1

    runner.run(check())


async def room(lane: SimulatedLane, horizon_s: float, entering: int) -> tuple[int, int]:
    prelude = turns.source("settle").split("-- What changes a lane")[0]
    script = prelude + "\nreturn { lane_room(ARGV[1], clock(), tonumber(ARGV[2]), tonumber(ARGV[3])) }"
    jobs, retry_us, *_ = await lane.redis.eval(script, 0, lane.lane.key, round(horizon_s * 1e6), entering)
    return jobs, retry_us


def test_a_lane_that_nobody_has_used_has_room_for_a_few(runner: asyncio.Runner, connection: Redis) -> None:
    async def check() -> None:
        async with SimulatedLane(connection, LaneLimits()) as lane:
            assert await room(lane, 1, 0) == (64, 0)
            assert await room(lane, 1, 10) == (54, 0)
            jobs, retry_us = await room(lane, 1, 64)
            assert (jobs, retry_us > 0) == (0, True)

    runner.run(check())


class TestTickets:
    def test_what_ended_once_does_not_end_again(self, runner: asyncio.Runner, connection: Redis) -> None:
        async def check() -> None:
            async with SimulatedLane(connection, LaneLimits(rpm=60, tpm=600, burst_s=60)) as lane:
                for end in (lane.cancel, lambda call: lane.settle(call, 10)):
                    await lane.ask(100)
                    call = lane.granted[-1]
                    assert await end(call)
                    books = await lane.books()
                    assert not await end(call)
                    assert not await lane.settle(call, 50)
                    assert not await lane.cancel(call)
                    after = await lane.books()
                    assert (after.requests, after.tokens, after.cells) == (books.requests, books.tokens, books.cells)

        runner.run(check())

    def test_the_same_question_asked_twice_is_one_reservation(self, runner: asyncio.Runner, connection: Redis) -> None:
        async def check() -> None:
            async with SimulatedLane(connection, LaneLimits(rpm=60, tpm=600, burst_s=60)) as lane:
                asks = lane.turns["p1"].ask
                for ticket, reply in (("a", Reply.GRANTED), ("b", Reply.WAIT)):
                    for _ in range(2):
                        asked = await asks(lane.lane, lane.limits, ticket=ticket, tokens=500, owner="j")
                        assert asked.reply is reply
                books = await lane.books()
                assert (books.requests, books.tokens, books.tickets) == (1, 500, ["500 b"])

        runner.run(check())

    def test_who_leaves_the_line_lets_those_behind_move_up(self, runner: asyncio.Runner, connection: Redis) -> None:
        async def check() -> None:
            async with SimulatedLane(connection, LaneLimits(rpm=1000, tpm=600)) as lane:
                await lane.ask(7)
                assert (await lane.ask(30)).reply is Reply.WAIT
                assert (await lane.ask(1)).wait_s > 3
                await lane.cancel(lane.waiting[0])
                (small,) = lane.waiting
                assert small.due_us < lane.now_us + 100_000, "its owner was told"
                await lane.pass_time(0.1, sweeps=False)
                assert [call.tokens for call in lane.granted] == [7, 1]

        runner.run(check())

    def test_a_grant_that_nobody_heard_of_is_given_back_once(self, runner: asyncio.Runner, connection: Redis) -> None:
        async def check() -> None:
            async with SimulatedLane(connection, LaneLimits(rpm=1000, tpm=600, shape="window")) as lane:
                await lane.ask(500, process="p2")
                assert (await lane.ask(400, process="p1")).reply is Reply.WAIT
                await lane.kill("p1")
                await lane.settle(lane.granted[0], 0)
                assert (await lane.books()).tokens == 400, "granted on behalf of the dead"
                await lane.pass_time(30)
                books = await lane.books()
                assert (books.requests, books.tokens, books.held) == (1, 0, {})

        runner.run(check())

    def test_a_dead_process_loses_its_tickets_and_places_but_what_it_sent_is_spent(
        self, runner: asyncio.Runner, connection: Redis
    ) -> None:
        async def check() -> None:
            limits = LaneLimits(rpm=1000, tpm=600, shape="window", max_concurrency=1)
            async with SimulatedLane(connection, limits) as lane:
                await lane.pass_time(1)
                await lane.ask(500, process="p1")
                assert (await lane.ask(10, process="p2")).reply is Reply.WAIT
                await lane.kill("p1")
                await lane.pass_time(20)
                assert [call.process for call in lane.granted] == ["p1", "p2"]
                books = await lane.books()
                assert (books.tokens, books.in_flight) == (510, 1)

        runner.run(check())

    def test_a_call_that_never_ended_frees_its_place(self, runner: asyncio.Runner, connection: Redis) -> None:
        async def check() -> None:
            async with SimulatedLane(connection, LaneLimits(max_concurrency=1)) as lane:
                await lane.ask(10)
                await lane.pass_time(HOLD_S - 1)
                assert (await lane.books()).in_flight == 1
                await lane.pass_time(3)
                assert (await lane.books()).in_flight == 0

        runner.run(check())

    def test_with_all_places_taken_some_wait_and_the_rest_comes_later(
        self, runner: asyncio.Runner, connection: Redis
    ) -> None:
        async def check() -> None:
            async with SimulatedLane(connection, LaneLimits(burst_s=60, max_concurrency=3)) as lane:
                replies = [(await lane.ask(10)).reply for _ in range(8)]
                assert replies == [Reply.GRANTED] * 3 + [Reply.WAIT] * 3 + [Reply.LATER] * 2
                await lane.settle(lane.granted[0], 10)
                assert len(lane.granted) == 4, "the first in the line was woken"

        runner.run(check())

    def test_a_grant_that_is_heard_of_late_is_dated_anew(self, runner: asyncio.Runner, connection: Redis) -> None:
        async def check() -> None:
            limits = LaneLimits(rpm=1000, tpm=600, shape="window")
            async with SimulatedLane(connection, limits, loses_messages=True) as lane:
                await lane.ask(500)
                assert (await lane.ask(400)).reply is Reply.WAIT
                await lane.settle(lane.granted[0], 0)
                assert len(lane.granted) == 1
                await lane.pass_time(4)
                (call,) = lane.waiting
                call.due_us = lane.now_us
                await lane.pass_time(0)
                assert len(lane.granted) == 2
                await lane.pass_time(58, sweeps=False)
                assert (await lane.ask(400)).reply is Reply.WAIT, "a minute after it was sent"
                assert lane.waiting[0].due_us - 60_250_000 == lane.granted[1].at_us

        runner.run(check())

    def test_after_the_limits_were_lowered_who_became_too_large_is_told(
        self, runner: asyncio.Runner, connection: Redis
    ) -> None:
        async def check() -> None:
            async with SimulatedLane(connection, LaneLimits(tpm=600, shape="window")) as lane:
                await lane.ask(500)
                assert (await lane.ask(400)).reply is Reply.WAIT
                lane.limits = LaneLimits(tpm=300, shape="window")
                await lane.ask(10)
                assert lane.waiting == [] or lane.waiting[0].tokens == 10
                await lane.check_books()

        runner.run(check())


class TestTime:
    def test_a_lane_goes_on_when_the_servers_clock_is_set_back(self, runner: asyncio.Runner, connection: Redis) -> None:
        async def check() -> None:
            for shape in SHAPES:
                async with SimulatedLane(connection, LaneLimits(rpm=60, burst_s=1, shape=shape)) as lane:
                    while (await lane.ask(10)).reply is not Reply.LATER:
                        pass
                    waiting = list(lane.waiting)
                    assert waiting or shape == "window"
                    lane.set_clock_back(3600)
                    # What passed since the lane was last seen is lost: the sweep sees it every second.
                    await lane.pass_time(1.1)
                    await lane.pass_time(5.1)
                    assert lane.waiting == []
                    await lane.pass_time(60.25)
                    assert (await lane.ask(10)).reply is Reply.GRANTED

        runner.run(check())

    def test_an_idle_lane_is_forgotten_and_nothing_is_kept_for_ever(
        self, runner: asyncio.Runner, connection: Redis
    ) -> None:
        async def check() -> None:
            async with SimulatedLane(connection, LaneLimits(rpm=60, tpm=600, max_concurrency=2)) as lane:
                for _ in range(5):
                    await lane.ask(10)
                await lane.settle(lane.granted[0], 5)
                kept = await keys(lane)
                lane_key = lane.lane.key
                assert set(kept) == {f"aq:{kind}:{lane_key}" for kind in ("limit", "cells", "tickets", "held")} | {
                    "aq:limited"
                }
                assert kept.pop("aq:limited") == -1
                assert all(HOLD_S + 60 < ttl_s <= HOLD_S + 300 for ttl_s in kept.values())
                for process in ("p1", "p2"):
                    await lane.kill(process)
                lane.waiting.clear()
                await lane.pass_time(HOLD_S + 20)
                assert set(await keys(lane)) == {f"aq:limit:{lane_key}", f"aq:cells:{lane_key}"}
                await lane.cool_down(3600)
                assert (await keys(lane))[f"aq:limit:{lane_key}"] > 3600

        runner.run(check())

    def test_what_lies_more_than_a_minute_back_is_not_kept(self, runner: asyncio.Runner, connection: Redis) -> None:
        async def check() -> None:
            async with SimulatedLane(connection, LaneLimits(rpm=6000, tpm=6000)) as lane:
                for _ in range(200):
                    await lane.ask(1)
                    await lane.pass_time(1, sweeps=False)
                assert len((await lane.books()).cells) <= 62

        runner.run(check())

    def test_when_redis_forgets_everything_who_waits_asks_anew(self, runner: asyncio.Runner, connection: Redis) -> None:
        async def check() -> None:
            async with SimulatedLane(connection, LaneLimits(rpm=60, tpm=600)) as lane:
                for _ in range(4):
                    await lane.ask(10)
                assert len(lane.waiting) == 3
                await connection.flushall()
                await lane.pass_time(0, sweeps=False)
                assert not await lane.settle(lane.granted[0], 5)
                assert await keys(lane) == {}
                await lane.pass_time(8)
                assert len(lane.granted) == 4

        runner.run(check())

    @pytest.mark.parametrize("evicted", ["limit", "cells", "tickets", "held"])
    def test_a_lane_that_redis_evicted_a_part_of_goes_on(
        self, runner: asyncio.Runner, connection: Redis, evicted: str
    ) -> None:
        async def check() -> None:
            async with SimulatedLane(connection, LaneLimits(rpm=60, tpm=600)) as lane:
                for _ in range(4):
                    await lane.ask(10)
                await connection.delete(f"aq:{evicted}:{lane.lane.key}")
                await lane.settle(lane.granted[0], 5)
                await lane.pass_time(9)
                assert len(lane.granted) == 4
                await lane.pass_time(61)
                assert (await lane.ask(10)).reply is Reply.GRANTED

        runner.run(check())


async def keys(lane: SimulatedLane) -> dict[str, int]:
    """Return the limiter's keys with the seconds that they are kept for; -1 is for ever."""
    names_ = [text(key) for key in await lane.redis.keys("aq:*")]
    return {key: await lane.redis.ttl(key) for key in names_ if key not in (names.WORKERS, "aq:expiry")}


class TestCoolDown:
    @pytest.mark.parametrize("delays_s", [(100, 20), (20, 100)])
    def test_of_two_the_longer_wins(
        self, runner: asyncio.Runner, connection: Redis, delays_s: tuple[float, float]
    ) -> None:
        async def check() -> None:
            async with SimulatedLane(connection, LaneLimits()) as lane:
                for delay_s in delays_s:
                    await lane.cool_down(delay_s)
                answer = await lane.ask(10)
                # It comes back when a line may form again.
                assert (answer.reply, answer.wait_s) == (Reply.LATER, 97.5)

        runner.run(check())

    def test_those_who_wait_keep_their_order_and_start_with_no_more_than_a_second_at_once(
        self, runner: asyncio.Runner, connection: Redis
    ) -> None:
        async def check() -> None:
            async with SimulatedLane(connection, LaneLimits(rpm=60, burst_s=60, shape="bucket")) as lane:
                await lane.ask(10)
                await lane.cool_down(2)
                asked = [await lane.ask(10) for _ in range(3)]
                assert [answer.wait_s for answer in asked] == [2, 3, 4]
                waiting = list(lane.waiting)
                await lane.pass_time(4)
                assert lane.granted[1:] == waiting

        runner.run(check())


class TestBelief:
    def believe(self, lane: SimulatedLane, told: QuotaTold) -> Any:
        return lane.turns["p1"].believe(lane.lane, lane.limits, told)

    def test_a_lower_limit_holds_while_it_is_told_and_a_higher_one_is_not_used(
        self, runner: asyncio.Runner, connection: Redis
    ) -> None:
        async def check() -> None:
            async with SimulatedLane(connection, LaneLimits(rpm=60, shape="window")) as lane:
                await lane.ask(10)
                await self.believe(lane, QuotaTold(limit_requests=600, limit_tokens=10**9))
                await self.believe(lane, QuotaTold(limit_requests=10, limit_tokens=10**9))
                for _ in range(70):
                    await lane.ask(10)
                assert len(lane.granted) == 10
                lane.waiting.clear()
                await lane.pass_time(301)
                lane.granted.clear()
                for _ in range(70):
                    await lane.ask(10)
                assert len(lane.granted) == 60

        runner.run(check())

    @pytest.mark.parametrize(
        ("told", "paused_s"),
        [
            pytest.param(QuotaTold(remaining_requests=0, reset_requests_s=20), 20, id="requests"),
            pytest.param(QuotaTold(remaining_tokens=5, reset_tokens_s=20), 20, id="less than a call"),
            pytest.param(QuotaTold(remaining_tokens=0, reset_tokens_s=86_400), 120, id="a day"),
            pytest.param(QuotaTold(remaining_tokens=500, reset_tokens_s=20), 0, id="enough for a call"),
            pytest.param(QuotaTold(remaining_tokens=0), 0, id="no reset"),
            pytest.param(QuotaTold(remaining_tokens=0, reset_tokens_s=0.5), 0, id="soon"),
            pytest.param(QuotaTold(), 0, id="nothing"),
        ],
    )
    def test_nothing_is_granted_before_the_reset_of_what_others_used_up(
        self, runner: asyncio.Runner, connection: Redis, told: QuotaTold, paused_s: float
    ) -> None:
        async def check() -> None:
            async with SimulatedLane(connection, LaneLimits()) as lane:
                await lane.ask(100)
                assert await self.believe(lane, told) == paused_s
                answer = await lane.ask(100)
                assert (answer.reply is Reply.GRANTED) == (paused_s == 0)
                assert answer.wait_s == max(0, paused_s - 2.5)

        runner.run(check())

    def test_what_we_used_up_ourselves_is_no_news(self, runner: asyncio.Runner, connection: Redis) -> None:
        async def check() -> None:
            async with SimulatedLane(connection, LaneLimits(tpm=6000, shape="window")) as lane:
                await lane.ask(5990)
                told = QuotaTold(limit_tokens=6000, remaining_tokens=10, reset_tokens_s=60)
                assert await self.believe(lane, told) == 0

        runner.run(check())


def test_the_clock_of_these_tests_is_moved_by_hand(runner: asyncio.Runner, connection: Redis) -> None:
    async def check() -> None:
        async with SimulatedLane(connection, LaneLimits()) as lane:
            await lane.ask(10)
            assert (await lane.books()).state[1] == lane.now_us == float(text(await connection.get(CLOCK)))

    runner.run(check())
