"""Spend caps in a real Valkey: what calls hold, what they spend, and who waits or ends for it."""

from __future__ import annotations

import asyncio
import dataclasses
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
import redis as sync_redis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from producer import Producer
from schemas import Status, Usage, names
from schemas.lane import Lane
from schemas.prices import Price, SpendCap
from tests.given import WORKSPACE, a_job, a_result, let_leases_lapse, let_parked_lanes_open, release, text
from worker.limits.learned import Expected
from worker.queue.queue import CalledOff, Claimed, JobQueue, StaleJobError
from worker.queue.steps import ReplyStep
from worker.spend.spending import REFUSED_IN_A_ROW, Held, NoPrice, Over, Quote, Spending

pytestmark = pytest.mark.anyio

LANE = Lane(WORKSPACE, "127.0.0.1", "m1")
# One nano a token.
PRICE = Price(prompt_nano=1_000_000, completion_nano=1_000_000)
BATCH = names.batch("b")
NANOS_OF = 1_000_000_000


@dataclass
class Desk:
    """A queue with its ledger, and a clock that the test sets."""

    redis: Redis
    producer: Producer
    price: Price | None = PRICE
    cap: SpendCap = field(default_factory=SpendCap)
    now: datetime = datetime(2026, 11, 30, 23, 59, tzinfo=UTC)

    def __post_init__(self) -> None:
        self.queue = JobQueue(self.redis)
        self.spending = Spending(
            self.redis, price_of=lambda _: self.price, cap_of=lambda _: self.cap, now=lambda: self.now
        )

    def enqueue(self, count: int, *, cap_nano: int | None, batch_id: str = "b") -> None:
        cap = None if cap_nano is None else cap_nano / NANOS_OF
        self.producer.enqueue_many([a_job()] * count, batch_id=batch_id, spend_cap=cap)

    async def claim(self, count: int) -> list[Claimed]:
        """Claim up to so many jobs that may run now."""
        await self.queue.heartbeat("a-worker", capacity=1000, ttl_s=60)
        await let_parked_lanes_open(self.redis)
        held = [await self.queue.claim(hint) for hint in await release(self.queue, count)]
        return [each for each in held if each]

    def quote(self, held: Claimed, nano: int) -> Quote:
        known = self.spending.quote(held, LANE, Expected(prompt=0, completion=0, counted=0), max_tokens=None)
        return dataclasses.replace(known, most_nano=nano)

    async def reserve(self, held: Claimed, nano: int) -> NoPrice | Held | Over | None:
        return await self.spending.reserve(held, self.quote(held, nano))

    async def send(self, held: Claimed, nano: int) -> None:
        await self.spending.send(held, self.quote(held, nano))

    async def reply(self, held: Claimed, cost_nano: int, *, index: int = 0) -> None:
        step = ReplyStep(
            content="positive",
            finish_reason="stop",
            model="m1",
            usage=Usage(prompt_tokens=cost_nano, completion_tokens=0),
            cost_nano=cost_nano,
        )
        await self.queue.append(held, step, index=index, account=self.quote(held, 0).account)

    async def buy(self, held: Claimed, nano: int, cost_nano: int) -> None:
        assert await self.reserve(held, nano) is None
        await self.send(held, nano)
        await self.reply(held, cost_nano)

    async def finish(self, held: Claimed, **fields: object) -> None:
        await self.queue.finish(held, a_result(held.record, **fields))

    async def back_to_line(self, held: Claimed) -> None:
        await self.queue.snooze(held, delay_s=0, burns_attempt=False, hold_lane=False)

    async def lose_leases(self) -> None:
        await let_leases_lapse(self.redis)
        await self.queue.sweep()

    async def sums(self, key: str = BATCH) -> tuple[int, int]:
        """Return what is spent and what is reserved there."""
        spent, reserved = await self.redis.hmget(key, "spent_nano", "reserved_nano")
        return int(spent or 0), int(reserved or 0)


@pytest.fixture
def desk(redis_client: Redis, producer: Producer) -> Desk:
    return Desk(redis_client, producer)


class TestOneCall:
    async def test_holds_what_it_may_cost_and_then_spends_what_it_cost_once(self, desk: Desk) -> None:
        desk.cap = SpendCap(nano=100)
        desk.enqueue(1, cap_nano=50)
        (held,) = await desk.claim(1)
        account = names.spend(WORKSPACE, "2026-11")
        assert await desk.reserve(held, 30) is None
        assert await desk.reserve(held, 30) is None  # the answer to the first request was lost
        assert await desk.sums() == await desk.sums(account) == (0, 30)
        await desk.send(held, 30)
        for _ in range(2):  # the answer to the first append was lost
            await desk.reply(held, 12)
        assert await desk.sums() == await desk.sums(account) == (12, 0)

    async def test_is_paid_by_the_month_in_which_it_was_reserved(self, desk: Desk) -> None:
        desk.cap = SpendCap(nano=100)
        desk.enqueue(1, cap_nano=None)
        (held,) = await desk.claim(1)
        assert await desk.reserve(held, 30) is None
        await desk.send(held, 30)
        desk.now = datetime(2026, 12, 1, tzinfo=UTC)
        await desk.reply(held, 12)
        assert await desk.sums(names.spend(WORKSPACE, "2026-11")) == (12, 0)
        assert [each.period for each in desk.producer.accounts()] == ["2026-11"]

    async def test_without_any_cap_is_counted_with_its_reply_alone(self, desk: Desk) -> None:
        desk.enqueue(1, cap_nano=None)
        (held,) = await desk.claim(1)
        await desk.buy(held, 30, 12)
        (account,) = desk.producer.accounts()
        assert (account.workspace, account.spent_nano, account.reserved_nano, account.cap_nano) == (
            WORKSPACE,
            12,
            0,
            None,
        )

    async def test_under_a_cap_needs_a_price(self, desk: Desk) -> None:
        desk.price = None
        desk.enqueue(1, cap_nano=50)
        (held,) = await desk.claim(1)
        assert await desk.reserve(held, 0) == NoPrice(LANE)

    @pytest.mark.parametrize(("sent", "spent"), [(False, 0), (True, 30)])
    async def test_of_a_worker_that_died_is_spent_only_if_it_may_have_left(
        self, desk: Desk, sent: bool, spent: int
    ) -> None:
        desk.enqueue(1, cap_nano=50)
        (held,) = await desk.claim(1)
        assert await desk.reserve(held, 30) is None
        if sent:
            await desk.send(held, 30)
        await desk.lose_leases()
        assert await desk.sums() == (spent, 0)

    async def test_does_not_leave_once_the_job_is_taken_away(self, desk: Desk) -> None:
        desk.enqueue(1, cap_nano=50)
        (held,) = await desk.claim(1)
        assert await desk.reserve(held, 30) is None
        await desk.lose_leases()
        (anew,) = await desk.claim(1)
        assert await desk.reserve(anew, 30) is None
        with pytest.raises(StaleJobError):
            await desk.send(held, 30)
        with pytest.raises(StaleJobError):
            await desk.reserve(held, 30)
        await desk.spending.free(held, desk.quote(held, 30))
        assert await desk.sums() == (0, 30)

    async def test_that_was_not_charged_gives_back_what_it_held(self, desk: Desk) -> None:
        desk.enqueue(1, cap_nano=50)
        (held,) = await desk.claim(1)
        assert await desk.reserve(held, 30) is None
        await desk.send(held, 30)
        await desk.spending.free(held, desk.quote(held, 30))
        assert await desk.sums() == (0, 0)

    @pytest.mark.parametrize(("sent", "spent"), [(False, 0), (True, 30)])
    async def test_holds_nothing_once_its_job_waits_or_has_ended(self, desk: Desk, sent: bool, spent: int) -> None:
        desk.enqueue(2, cap_nano=100)
        waits, ends = await desk.claim(2)
        for held in (waits, ends):
            assert await desk.reserve(held, 30) is None
            if sent:
                await desk.send(held, 30)
        await desk.back_to_line(waits)
        await desk.finish(ends)
        assert await desk.sums() == (2 * spent, 0)


class TestRoom:
    async def test_that_others_hold_is_waited_for_and_the_batchs_lines_with_it(self, desk: Desk) -> None:
        desk.enqueue(4, cap_nano=50)
        first, second = await desk.claim(2)
        assert await desk.reserve(first, 30) is None
        assert await desk.reserve(second, 30) == Held("batch")
        await desk.back_to_line(second)
        desk.enqueue(1, cap_nano=None, batch_id="other")
        assert [held.batch_id for held in await desk.claim(5)] == ["other"]
        await desk.send(first, 30)
        await desk.reply(first, 12)
        (again,) = await desk.claim(1)
        assert again.id == second.id
        assert await desk.reserve(again, 30) is None

    async def test_of_a_workspace_is_shared_by_its_batches(self, desk: Desk) -> None:
        desk.cap = SpendCap(nano=50, period="total")
        desk.enqueue(1, cap_nano=None)
        desk.enqueue(1, cap_nano=None, batch_id="other")
        first, second = await desk.claim(2)
        assert await desk.reserve(first, 30) is None
        assert await desk.reserve(second, 30) == Held("workspace")
        await desk.send(first, 30)
        await desk.reply(first, 25)
        assert await desk.reserve(second, 26) == Over("workspace", most_nano=26, spent_nano=25, cap_nano=50)
        assert await desk.reserve(second, 25) is None

    async def test_that_is_spent_is_told_and_leaves_smaller_calls_alone(self, desk: Desk) -> None:
        desk.enqueue(3, cap_nano=50)
        first, large, small = await desk.claim(3)
        await desk.buy(first, 30, 30)
        assert await desk.reserve(large, 21) == Over("batch", most_nano=21, spent_nano=30, cap_nano=50)
        assert await desk.reserve(small, 20) is None

    async def test_is_no_more_looked_for_once_so_many_in_a_row_found_none(self, desk: Desk) -> None:
        count = REFUSED_IN_A_ROW + 200
        desk.enqueue(count, cap_nano=50)
        first, *refused = await desk.claim(1 + REFUSED_IN_A_ROW)
        await desk.buy(first, 50, 50)
        await desk.finish(first)
        for held in refused:
            assert isinstance(await desk.reserve(held, 1), Over)
            await desk.finish(held, status=Status.OVER_BUDGET)
        assert await desk.claim(10) == []
        hints = await desk.queue.drain(1000)
        assert len(hints) == count - 1 - REFUSED_IN_A_ROW
        for hint in hints:
            drained = await desk.queue.claim(hint)
            assert drained is not None
            assert drained.called_off is CalledOff.OVER_BUDGET
            await desk.finish(drained, status=Status.OVER_BUDGET)
        status = desk.producer.batch("b").status()
        assert status is not None
        assert status.counts == {Status.SUCCEEDED: 1, Status.OVER_BUDGET: count - 1}
        assert await desk.queue.ending_batches()


CAPS = {"b1": 50, "b2": None}
WORKSPACE_CAP = 90
numbers = st.integers(0, 30)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("claim"), st.integers(1, 4)),
        st.tuples(st.just("reserve"), numbers, st.integers(1, 20)),
        st.tuples(st.just("reserve"), numbers, st.integers(1, 20)),
        st.tuples(st.just("send"), numbers),
        st.tuples(st.just("reply"), numbers, st.floats(0, 1), st.integers(1, 2)),
        st.tuples(st.just("free"), numbers),
        st.tuples(st.just("snooze"), numbers),
        st.tuples(st.just("finish"), numbers),
        st.tuples(st.just("workers die")),
        st.tuples(st.just("drain"), st.integers(1, 5)),
    ),
    min_size=30,
    max_size=80,
)


@dataclass
class Call:
    """What the test knows of a job in a worker's hands."""

    held: Claimed
    nano: int = 0
    sent: bool = False
    steps: int = 0


@dataclass
class Played:
    """The desk, and what must be true of it."""

    desk: Desk
    calls: list[Call] = field(default_factory=list)
    lost: list[Call] = field(default_factory=list)
    spent: dict[str, int] = field(default_factory=dict)

    async def do(self, verb: str, number: int = 0, *more: Any) -> None:
        match verb:
            case "claim":
                self.calls += [Call(held, steps=len(held.journal)) for held in await self.desk.claim(number)]
            case "workers die":
                for call in self.calls:
                    self._fate_unknown(call)
                self.lost += self.calls
                self.calls.clear()
                await self.desk.lose_leases()
                await self._dead_hands_are_refused()
            case "drain":
                for hint in await self.desk.queue.drain(number):
                    held = await self.desk.queue.claim(hint)
                    assert held is not None
                    await self.desk.finish(held, status=Status.OVER_BUDGET)
            case _:
                if self.calls:
                    await self._act(verb, self.calls[number % len(self.calls)], *more)

    async def _act(self, verb: str, call: Call, *more: Any) -> None:
        desk, held = self.desk, call.held
        match verb:
            case "reserve":
                self._fate_unknown(call)
                (nano,) = more
                against = await desk.reserve(held, nano)
                call.nano = nano if against is None else 0
                if isinstance(against, Held):
                    await self._leave(call, desk.back_to_line(held))
                elif isinstance(against, Over):
                    await self._leave(call, desk.finish(held, status=Status.OVER_BUDGET))
            case "send" if call.nano:
                await desk.send(held, call.nano)
                call.sent = True
            case "reply" if call.sent:
                share, times = more
                cost = int(call.nano * share)
                for _ in range(times):
                    await desk.reply(held, cost, index=call.steps)
                self._spend(held, cost)
                call.steps, call.nano, call.sent = call.steps + 1, 0, False
            case "free" if call.nano:
                await desk.spending.free(held, desk.quote(held, call.nano))
                call.nano, call.sent = 0, False
            case "snooze":
                self._fate_unknown(call)
                await self._leave(call, desk.back_to_line(held))
            case "finish":
                self._fate_unknown(call)
                await self._leave(call, desk.finish(held))
            case _:
                pass  # it was not reserved, or not sent

    async def _leave(self, call: Call, leaving: Any) -> None:
        await leaving
        self.calls.remove(call)

    async def _dead_hands_are_refused(self) -> None:
        for call in self.lost[-3:]:
            with pytest.raises(StaleJobError):
                await self.desk.reserve(call.held, 1)
            with pytest.raises(StaleJobError):
                await self.desk.reply(call.held, 1, index=call.steps)

    def _fate_unknown(self, call: Call) -> None:
        if call.sent:
            self._spend(call.held, call.nano)
        call.nano, call.sent = 0, False

    def _spend(self, held: Claimed, nano: int) -> None:
        for scope in (held.batch_id or "", WORKSPACE):
            self.spent[scope] = self.spent.get(scope, 0) + nano

    async def check(self) -> None:
        keys = {WORKSPACE: names.spend(WORKSPACE, "2026-11"), **{batch: names.batch(batch) for batch in CAPS}}
        for scope, key in keys.items():
            spent, reserved = await self.desk.sums(key)
            of_scope = [call.nano for call in self.calls if scope in (WORKSPACE, call.held.batch_id)]
            assert reserved == sum(of_scope), f"what is reserved of {scope} is not what its calls hold"
            assert spent == self.spent.get(scope, 0), f"what is spent of {scope} is not what its calls cost"
            cap = WORKSPACE_CAP if scope == WORKSPACE else CAPS[scope]
            assert cap is None or spent + reserved <= cap, f"the cap of {scope} does not hold"

    async def end_all(self) -> None:
        """Let every job go on to its end."""
        for _ in range(200):
            for call in list(self.calls):
                await self._act("reserve", call, 3)
                if call in self.calls:
                    await self._act("send", call)
                    await self._act("reply", call, 0.5, 1)
                    await self._act("finish", call)
            await self.check()
            await self.do("drain", 1000)
            await self.do("claim", 5)
            if not await self.desk.redis.keys(names.job("*")):
                break
        assert not await self.desk.redis.keys(names.job("*")), "lost"
        for batch in CAPS:
            fields = {
                text(key): text(value) for key, value in (await self.desk.redis.hgetall(names.batch(batch))).items()
            }
            assert fields["finished"] == fields["enqueued"]
            assert "short_ms" not in fields


@settings(
    max_examples=40,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(steps=STEPS)
def test_whatever_happens_caps_hold_and_every_call_is_counted_once(
    runner: asyncio.Runner, valkey_url: str, steps: list[tuple[Any, ...]]
) -> None:
    async def play() -> None:
        client = Redis.from_url(valkey_url)
        with sync_redis.Redis.from_url(valkey_url) as connection:
            await client.flushall()
            desk = Desk(client, Producer(connection), cap=SpendCap(nano=WORKSPACE_CAP))
            for batch, cap in CAPS.items():
                desk.enqueue(12, cap_nano=cap, batch_id=batch)
            played = Played(desk)
            for step in steps:
                await played.do(*step)
                await played.check()
            await played.end_all()
        await client.aclose()

    runner.run(play())
