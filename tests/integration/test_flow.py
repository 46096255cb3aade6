"""The real flow, in one event loop: real Valkey, SQLite and PostgreSQL, and a provider over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import httpx
import psycopg
import pytest
from redis.asyncio import Redis
from sqlalchemy import Engine, QueuePool, text
from sqlmodel import Session, select

from producer import Producer
from producer.entries import RejectedRow
from schemas import JobResult, Message, OutputSpec, ProducerError, Rejection, Status, Usage, database, names
from schemas.assistant import DEFAULT_MAX_REPAIRS
from schemas.database import engine_for, ensure_tables
from schemas.lane import Lane
from schemas.lane_limits import LaneLimits
from schemas.money import NANOS
from schemas.outcome import Code
from schemas.prices import Price, SpendCap
from schemas.quota_told import QuotaTold
from schemas.tables import Job, ThreadMessage
from tests.given import (
    WORKSPACE,
    a_config,
    a_job,
    let_leases_lapse,
    let_parked_lanes_open,
    let_snoozes_end,
    released,
    reserved,
    state,
    store_assistant,
    until,
    user,
    waiting,
)
from tests.loopback_provider import (
    LoopbackProvider,
    Reply,
    answers,
    cut_connection,
    hang_until,
    malformed_json,
    status,
    streams,
)
from worker.clock import Clock
from worker.events import (
    Event,
    Events,
    JobCrashed,
    JobEnded,
    JobSnoozed,
    JobStarted,
    LimiterWaited,
    ProviderCalled,
    ServiceFault,
    StaleWorkRefused,
    ToolCrashed,
)
from worker.flow.converse import Conversation
from worker.flow.output import wire_schema
from worker.flow.run import Flow
from worker.limits.base import Answer
from worker.limits.learned import SEEN_MIN, EstimateKey, Estimates
from worker.limits.redis_limiter import RedisLimiter
from worker.providers.base import ChatRequest
from worker.providers.openai_compatible import OpenAICompatible, http_client
from worker.queue.leases import Leases
from worker.queue.queue import LEASE_S, Hint, JobQueue
from worker.queue.steps import ReplyStep, ResultStep
from worker.spend.spending import Spending
from worker.store.sql import SqlStore
from worker.tools.toolbox import WorkerToolbox

pytestmark = pytest.mark.anyio

DEADLINE_S = 20
MAX_ATTEMPTS = 3
MAX_KILLS = 3
LABEL = OutputSpec(type="enum", enum=("positive", "negative"))
LANE = Lane(WORKSPACE, "127.0.0.1", "m1")
PLENTY = LaneLimits(rpm=100_000, tpm=100_000_000, burst_s=60)

E = TypeVar("E")


@dataclass
class Worker:
    """One worker's flow and what it told; `run` runs what is released to it now."""

    redis: Redis
    engine: Engine
    client: httpx.AsyncClient
    base_url: str
    limits: LaneLimits = PLENTY
    price: Price | None = None
    cap: SpendCap = field(default_factory=SpendCap)
    told: list[Event] = field(default_factory=list)
    stood_still_s: float = 0.0

    def __post_init__(self) -> None:
        self._heard = asyncio.Condition()
        self.events = Events(self._hear)
        self.queue = JobQueue(self.redis)
        self.leases = Leases(self.queue, self.events, now_s=lambda: time.monotonic() + self.stood_still_s)
        self.store = SqlStore(self.engine)
        self.clock = Clock()
        self.limiter = RedisLimiter(
            self.redis, limits_of=lambda _: self.limits, clock=self.clock, process="a-worker", events=self.events
        )
        self.estimates = Estimates()
        self.provider = OpenAICompatible(self.client, base_url=self.base_url, api_key="sk-CANARY")
        self.toolbox = WorkerToolbox(
            environment={},
            allows_private=lambda _workspace: False,
            on_crash=lambda tool, error: self.events.emit(ToolCrashed(tool, error)),
        )
        conversation = Conversation(
            providers={"openai": self.provider},
            schema_tools=None,
            toolbox=self.toolbox,
            limiter=self.limiter,
            estimates=self.estimates,
            spending=Spending(self.redis, price_of=lambda _: self.price, cap_of=lambda _: self.cap, now=self.clock.now),
            leases=self.leases,
            queue=self.queue,
            clock=self.clock,
            events=self.events,
            max_attempts=MAX_ATTEMPTS,
        )
        self.flow = Flow(
            queue=self.queue,
            leases=self.leases,
            store=self.store,
            conversation=conversation,
            clock=self.clock,
            events=self.events,
            default_model=None,
            max_attempts=MAX_ATTEMPTS,
            max_kills=MAX_KILLS,
        )

    def _hear(self, event: Event) -> None:
        self.told.append(event)
        self._changed = asyncio.ensure_future(self._wake())

    async def _wake(self) -> None:
        async with self._heard:
            self._heard.notify_all()

    async def hear(self, kind: type[E], *, count: int = 1) -> E:
        """Return the first event of the kind, as soon as there are so many."""
        async with asyncio.timeout(DEADLINE_S), self._heard:
            await self._heard.wait_for(lambda: len(self.all(kind)) >= count)
        return self.all(kind)[0]

    def all(self, kind: type[E]) -> list[E]:
        return [event for event in self.told if isinstance(event, kind)]

    async def run(self) -> int:
        """Run the jobs that can run now, each once; return how many there were."""
        hints = await released(self.queue)
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.gather(*(self.flow.run(hint) for hint in hints))
        return len(hints)

    async def let_waits_end(self) -> None:
        """Make it as late as the end of every wait: snoozes, holds and cool-downs."""
        await let_snoozes_end(self.redis)
        await self.queue.sweep()
        await let_parked_lanes_open(self.redis)
        for key in await self.redis.keys(names.limit("*")):
            await self.redis.hdel(key, "cool_until_us")

    async def finish_all(self) -> None:
        """Run until nothing is left to run, without waiting."""
        for _ in range(20):
            await self.run()
            await self.let_waits_end()
            if not await self.redis.keys(names.job("*")):
                return
        raise AssertionError("jobs came back again and again")

    async def finish_some(self) -> None:
        """Run what can run, what was called off too, and let waits end."""
        await self.run()
        await asyncio.gather(*(self.flow.run(hint) for hint in await self.queue.drain(1000)))
        await self.let_waits_end()

    def estimate_nano(self) -> int:
        """Return the most that a call of a_job() may cost where a token costs one nano: 8 tokens and the prompt."""
        messages = (Message(role="user", content="Review: good"),)
        request = ChatRequest(model="m1", messages=messages, response_schema=wire_schema(LABEL), max_tokens=8)
        key = EstimateKey("nothing", "was", "seen", "yet")
        return self.estimates.expect(request, key).at_most(max_tokens=8).total_tokens

    async def lose_leases(self) -> None:
        """Have every job taken away from its worker, as after a pause."""
        await let_leases_lapse(self.redis)
        await self.queue.sweep()

    def rows(self) -> list[Job]:
        with Session(self.engine) as session:
            return list(session.exec(select(Job).order_by(Job.id)))


@pytest.fixture
def engine(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    monkeypatch.setattr(database, "SQLITE_BUSY_TIMEOUT_S", 0.05)
    engine = engine_for(database_url)
    ensure_tables(engine)
    store_assistant(engine, a_config(output=LABEL, max_tokens=8))
    yield engine
    engine.dispose()


Hire = Callable[..., Worker]


@pytest.fixture
async def hire(redis_client: Redis, engine: Engine, loopback_provider: LoopbackProvider) -> AsyncIterator[Hire]:
    hired: list[Worker] = []
    async with http_client(connections=8, timeout_s=10) as client:

        def hire(**other: object) -> Worker:
            parts = {"redis": redis_client, "engine": engine, "client": client, "base_url": loopback_provider.base_url}
            hired.append(Worker(**{**parts, **other}))  # type: ignore[arg-type]
            return hired[-1]

        yield hire
    for worker in hired:
        await worker.toolbox.aclose()
        worker.store.close()


@pytest.fixture
def worker(hire: Hire) -> Worker:
    return hire()


def ended(producer: Producer, job_id: str = "j") -> JobResult:
    return producer.job(job_id).result(timeout_s=0)


class TestSuccess:
    async def test_a_job_is_answered_stored_counted_and_told(
        self, worker: Worker, producer: Producer, loopback_provider: LoopbackProvider
    ) -> None:
        batch = producer.enqueue_many([a_job("j", custom_id="row 1", metadata={"k": 1})], batch_id="b")
        assert await worker.run() == 1
        result = ended(producer)
        assert (result.status, result.output, result.custom_id) == (Status.SUCCEEDED, "positive", "row 1")
        assert (result.attempts, result.requests, result.version, result.model) == (1, 1, 1, "m1")
        body = loopback_provider.requests[0].body
        assert body["messages"] == [{"role": "user", "content": "Review: good"}]
        assert body["max_tokens"] == 8
        (row,) = worker.rows()
        assert row.result() == result
        assert (row.epoch, row.job_metadata, row.variables) == (1, {"k": 1}, {"review": "good"})
        told = batch.status()
        assert told is not None
        assert (told.counts, told.requests) == ({Status.SUCCEEDED: 1}, 1)
        assert told.prompt_tokens == result.prompt_tokens > 0
        assert told.completion_tokens == result.completion_tokens > 0
        assert [type(event) for event in worker.told] == [JobStarted, ProviderCalled, JobEnded]
        assert worker.all(ProviderCalled)[0].lane == LANE
        assert worker.leases.count == 0

    async def test_what_was_reserved_is_settled_to_what_was_used(
        self, worker: Worker, producer: Producer, redis_client: Redis
    ) -> None:
        producer.enqueue(a_job("j"))
        await worker.run()
        _requests, tokens = await reserved(redis_client, LANE)
        result = ended(producer)
        assert tokens == result.prompt_tokens + result.completion_tokens

    async def test_many_at_once_each_end_once(
        self, worker: Worker, producer: Producer, loopback_provider: LoopbackProvider
    ) -> None:
        batch = producer.enqueue_many([a_job(variables={"review": "bad"})] * 40, batch_id="b")
        await worker.finish_all()
        told = batch.status()
        assert told is not None
        assert told.counts == {Status.SUCCEEDED: 40}
        assert loopback_provider.count == len(worker.rows()) == 40
        assert set(await worker.queue.ending_batches()) == {"b"}

    async def test_no_connection_to_sql_is_held_while_providers_are_waited_for(
        self, worker: Worker, producer: Producer, loopback_provider: LoopbackProvider
    ) -> None:
        go, calls = threading.Event(), 8
        loopback_provider.queue(*[hang_until(go)] * calls)
        producer.enqueue_many([a_job()] * 64, batch_id="b")
        running = asyncio.create_task(worker.run())
        await asyncio.to_thread(loopback_provider.wait_for_requests, calls)
        assert isinstance(worker.engine.pool, QueuePool)
        held = worker.engine.pool.checkedout()
        go.set()
        assert await running == 64
        assert held == 0
        assert len(worker.rows()) == 64

    async def test_two_hints_of_one_epoch_run_once(
        self, worker: Worker, producer: Producer, loopback_provider: LoopbackProvider
    ) -> None:
        producer.enqueue(a_job("j"))
        (hint,) = await released(worker.queue)
        await asyncio.gather(*(worker.flow.run(hint) for _ in range(5)))
        await worker.flow.run(hint)
        assert (loopback_provider.count, len(worker.all(JobEnded))) == (1, 1)

    async def test_a_job_that_another_redis_once_ended_is_not_asked_for_again(
        self, worker: Worker, producer: Producer, loopback_provider: LoopbackProvider, redis_client: Redis
    ) -> None:
        producer.enqueue(a_job("j"))
        await worker.run()
        first = ended(producer)
        await redis_client.flushall()
        producer.enqueue(a_job("j"))
        await worker.run()
        assert ended(producer) == first
        assert loopback_provider.count == 1


class TestReplies:
    async def test_an_output_that_does_not_fit_is_kept_raw_and_not_asked_for_again_without_repairs(
        self, worker: Worker, producer: Producer, loopback_provider: LoopbackProvider, engine: Engine
    ) -> None:
        store_assistant(engine, a_config(output=LABEL, max_repairs=0), version=2)
        loopback_provider.queue(answers("It is rather positive."))
        producer.enqueue(a_job("j", thread_id="t"))
        await worker.finish_all()
        result = ended(producer)
        assert (result.status, result.error_code) == (Status.INVALID_OUTPUT, "output_not_json")
        assert (result.raw_reply, result.output) == ("It is rather positive.", None)
        assert (loopback_provider.count, result.requests) == (1, 1)
        assert worker.rows()[0].raw_reply == "It is rather positive."
        with Session(worker.engine) as session:
            assert session.exec(select(ThreadMessage)).all() == []

    async def test_an_output_that_does_not_fit_is_shown_to_the_model_as_often_as_allowed_and_the_last_one_kept(
        self, worker: Worker, producer: Producer, loopback_provider: LoopbackProvider
    ) -> None:
        loopback_provider.script(lambda _body, number: answers(f"Rather positive, said {number} times."))
        producer.enqueue(a_job("j", thread_id="t"))
        await worker.finish_all()
        result = ended(producer)
        asked = DEFAULT_MAX_REPAIRS + 1
        assert (result.status, result.error_code) == (Status.INVALID_OUTPUT, "output_not_json")
        assert (result.raw_reply, result.output) == (f"Rather positive, said {asked} times.", None)
        assert (loopback_provider.count, result.requests, result.attempts) == (asked, asked, 1)
        last = loopback_provider.requests[-1].body["messages"]
        assert [message["role"] for message in last] == ["user", *["assistant", "user"] * DEFAULT_MAX_REPAIRS]
        assert last[-2]["content"] == f"Rather positive, said {asked - 1} times."
        assert "not JSON" in last[-1]["content"]
        with Session(worker.engine) as session:
            assert session.exec(select(ThreadMessage)).all() == []

    async def test_text_with_nul_ends_as_any_other(
        self, worker: Worker, producer: Producer, loopback_provider: LoopbackProvider, engine: Engine
    ) -> None:
        store_assistant(engine, a_config(), version=2)
        loopback_provider.queue(answers("a\x00b"))
        producer.enqueue(a_job("j"))
        await worker.run()
        assert (ended(producer).status, ended(producer).output) == (Status.SUCCEEDED, "a\x00b")


class TestThreads:
    async def test_a_thread_goes_on_with_its_history_in_order(
        self, worker: Worker, producer: Producer, loopback_provider: LoopbackProvider, engine: Engine
    ) -> None:
        store_assistant(engine, a_config(instructions="Be brief.", template=()), version=2)
        loopback_provider.queue(answers("a0"), answers("a1"), answers("a2"))
        for number in range(3):
            producer.enqueue(a_job(f"j{number}", thread_id="t", messages=[user(f"q{number}")]))
        await worker.finish_all()
        assert [[message["content"] for message in each.body["messages"]] for each in loopback_provider.requests] == [
            ["Be brief.", "q0"],
            ["Be brief.", "q0", "a0", "q1"],
            ["Be brief.", "q0", "a0", "q1", "a1", "q2"],
        ]

    async def test_a_failed_turn_leaves_nothing_and_the_next_one_goes_on(
        self, worker: Worker, producer: Producer, loopback_provider: LoopbackProvider, engine: Engine
    ) -> None:
        store_assistant(engine, a_config(instructions="Be brief.", template=()), version=2)
        loopback_provider.queue(answers("a0"), status(400), answers("a2"))
        for number in range(3):
            producer.enqueue(a_job(f"j{number}", thread_id="t", messages=[user(f"q{number}")]))
        await worker.finish_all()
        assert ended(producer, "j1").status is Status.FAILED
        last = loopback_provider.requests[-1].body["messages"]
        assert [message["content"] for message in last] == ["Be brief.", "q0", "a0", "q2"]


class TestBeforeAnyCall:
    @pytest.fixture(autouse=True)
    async def _nothing_is_asked(self, loopback_provider: LoopbackProvider, worker: Worker) -> AsyncIterator[None]:
        yield
        assert loopback_provider.count == 0
        assert await worker.redis.keys(names.limit("*")) == []

    async def test_a_missing_variable_fails_the_job(self, worker: Worker, producer: Producer) -> None:
        producer.enqueue(a_job("j", variables={}))
        await worker.run()
        result = ended(producer)
        assert (result.status, result.error_code) == (Status.FAILED, "missing_variable")
        assert (result.attempts, result.requests, result.thread_id) == (0, 0, None)
        assert result.error
        assert "'review'" in result.error

    async def test_an_unknown_assistant_fails_the_job(self, worker: Worker, producer: Producer) -> None:
        producer.enqueue(a_job("j", environment="staging"))
        await worker.run()
        assert ended(producer).error_code == "assistant_unknown"

    async def test_a_rejected_row_has_its_place_in_the_results(self, worker: Worker, producer: Producer) -> None:
        rejected = RejectedRow(job=a_job(), rejection=Rejection(code=Code.BAD_ROW, error="line 3: 2 columns, not 3"))
        batch = producer.enqueue_many([rejected], batch_id="b")
        await worker.run()
        (row,) = worker.rows()
        assert (row.row, row.status, row.error_code, row.error) == (0, "failed", "bad_row", "line 3: 2 columns, not 3")
        told = batch.status()
        assert told is not None
        assert told.counts == {Status.FAILED: 1}


async def test_a_call_larger_than_the_lane_fails_at_once(
    hire: Hire, producer: Producer, loopback_provider: LoopbackProvider
) -> None:
    worker = hire(limits=LaneLimits(rpm=10, tpm=30, burst_s=1))
    producer.enqueue(a_job("j"))
    await worker.run()
    assert ended(producer).error_code == "too_large_for_limit"
    assert loopback_provider.count == 0


class TestReservations:
    @pytest.fixture
    def asked(self, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """The tokens of each reservation."""
        asked: list[int] = []
        reserve = worker.limiter.reserve

        async def spy(lane: Lane, *, tokens: int, owner: str) -> Answer:
            asked.append(tokens)
            return await reserve(lane, tokens=tokens, owner=owner)

        monkeypatch.setattr(worker.limiter, "reserve", spy)
        return asked

    async def test_what_calls_of_an_assistant_need_is_learned(
        self, worker: Worker, producer: Producer, asked: list[int]
    ) -> None:
        producer.enqueue_many([a_job(max_tokens=300) for _ in range(SEEN_MIN)])
        await worker.run()
        assert set(asked) == {asked[0]}
        assert asked[0] > 300
        producer.enqueue(a_job("j", max_tokens=300))
        await worker.run()
        used = ended(producer)
        total = used.prompt_tokens + used.completion_tokens
        assert total <= asked[-1] <= total * 1.05 + 2
        # What is asked for in another form is another matter.
        producer.enqueue(a_job("k", max_tokens=300, output=OutputSpec(type="enum", enum=("good", "bad"))))
        await worker.run()
        assert asked[-1] > 300

    async def test_a_provider_that_counts_nothing_is_expected_to_use_all_that_is_allowed(
        self, worker: Worker, producer: Producer, loopback_provider: LoopbackProvider, asked: list[int]
    ) -> None:
        message = {"role": "assistant", "content": '"positive"'}
        uncounted = {"model": "m1", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
        loopback_provider.queue(*[status(200, uncounted)] * (SEEN_MIN + 1))
        producer.enqueue_many([a_job(max_tokens=300) for _ in range(SEEN_MIN + 1)])
        await worker.run()
        producer.enqueue(a_job(max_tokens=300))
        await worker.run()
        assert min(asked) > 300

    async def test_each_step_of_a_tool_loop_is_a_reservation_of_its_own(
        self, worker: Worker, producer: Producer, loopback_provider: LoopbackProvider, asked: list[int]
    ) -> None:
        function = {"name": "word_count", "arguments": '{"text": "one two"}'}
        call = {"id": "c1", "type": "function", "function": function}
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
        usage = {"prompt_tokens": 20, "completion_tokens": 10}
        choices = [{"index": 0, "message": message, "finish_reason": "tool_calls"}]
        loopback_provider.queue(status(200, {"model": "m1", "choices": choices, "usage": usage}))
        producer.enqueue(a_job("j", tools=[{"type": "python", "name": "word_count"}]))
        await worker.run()
        assert (ended(producer).status, ended(producer).requests) == (Status.SUCCEEDED, 2)
        first, second = asked
        assert second > first

    async def test_what_the_provider_tells_of_its_limits_reaches_the_limiter(
        self,
        worker: Worker,
        producer: Producer,
        loopback_provider: LoopbackProvider,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        believed: list[tuple[Lane, QuotaTold]] = []

        async def believe(lane: Lane, told: QuotaTold) -> None:
            believed.append((lane, told))

        monkeypatch.setattr(worker.limiter, "believe", believe)
        loopback_provider.queue(
            status(429, headers={"retry-after-ms": "1", "x-ratelimit-remaining-requests": "0"}),
            dataclasses.replace(answers('"positive"'), headers={"x-ratelimit-remaining-requests": "5"}),
        )
        producer.enqueue(a_job("j"))
        await worker.finish_all()
        assert believed == [(LANE, QuotaTold(remaining_requests=0)), (LANE, QuotaTold(remaining_requests=5))]


FREE = "acme/reviews/free"


def cannot(*refused: str) -> Callable[[object, int], Reply]:
    """Return the script of a server that refuses these fields of a request, and knows no streams."""

    def script(body: object, n: int) -> Reply:
        assert isinstance(body, dict)
        found = next((field for field in refused if field in body), None)
        words = f"Unrecognized request argument supplied: {found}"
        return answers("positive") if found is None else status(400, {"error": {"message": words}})

    return script


class TestRefusedFields:
    """What a server refuses of what we add ourselves is asked for otherwise, and each ask has a turn of its own."""

    @pytest.mark.parametrize("jobs", [1, 20])
    @pytest.mark.parametrize("refused", [("stream_options",), ("stream_options", "stream"), ("response_format",)])
    async def test_no_request_leaves_without_a_turn_of_its_own(
        self,
        worker: Worker,
        producer: Producer,
        loopback_provider: LoopbackProvider,
        redis_client: Redis,
        jobs: int,
        refused: tuple[str, ...],
    ) -> None:
        loopback_provider.script(cannot(*refused))
        store_assistant(worker.engine, a_config(assistant=FREE))
        which = {} if refused == ("response_format",) else {"assistant": FREE, "tell": "stream"}
        producer.enqueue_many([a_job(f"j{n}", **which) for n in range(jobs)])
        await worker.run()
        assert {ended(producer, f"j{n}").status for n in range(jobs)} == {Status.SUCCEEDED}
        assert not worker.all(JobSnoozed)
        requests = loopback_provider.count
        assert requests >= jobs + len(refused)
        assert (await reserved(redis_client, LANE))[0] == requests
        assert len(worker.all(ProviderCalled)) == requests
        # Once it is known, nothing of it is asked for again, in no job of this process.
        producer.enqueue(a_job("next", **which))
        await worker.run()
        assert ended(producer, "next").succeeded
        assert loopback_provider.count == requests + 1

    async def test_where_turns_are_rare_the_next_run_asks_for_less(
        self, hire: Hire, producer: Producer, loopback_provider: LoopbackProvider, redis_client: Redis
    ) -> None:
        worker = hire(limits=LaneLimits(rpm=1, tpm=1_000_000, burst_s=1))
        loopback_provider.script(cannot("stream_options"))
        store_assistant(worker.engine, a_config(assistant=FREE))
        producer.enqueue(a_job("j", assistant=FREE, tell="stream"))
        await worker.run()
        assert worker.all(JobSnoozed)[0].code == Code.LIMITER_WAIT
        assert loopback_provider.count == 1
        # A lane that was idle for long is as good as new.
        await redis_client.delete(*(f"{names.PREFIX}:{kind}:{LANE.key}" for kind in ("limit", "cells")))
        await worker.let_waits_end()
        await worker.run()
        assert ended(producer).succeeded
        assert ["stream_options" in request.body for request in loopback_provider.requests] == [True, False]
        assert ended(producer).attempts == 1

    async def test_what_one_job_made_the_server_say_of_streams_changes_nothing_for_others(
        self, worker: Worker, producer: Producer, loopback_provider: LoopbackProvider
    ) -> None:
        go = threading.Event()
        refused = status(400, {"error": {"message": "Invalid schema for function 'stream'"}})

        def script(body: object, n: int) -> Reply:
            assert isinstance(body, dict)
            if "BAD" in str(body["messages"]):
                return refused if n == 1 else hang_until(go, then=refused)
            return streams("posi", "tive") if body.get("stream") else answers("positive")

        loopback_provider.script(script)
        store_assistant(worker.engine, a_config(assistant=FREE))
        producer.enqueue(a_job("bad", assistant=FREE, tell="stream", messages=(user("BAD"),)))
        running = asyncio.create_task(worker.run())
        await asyncio.to_thread(loopback_provider.wait_for_requests, 2)
        producer.enqueue(a_job("meanwhile", assistant=FREE, tell="stream"))
        await worker.run()
        go.set()
        await running
        producer.enqueue(a_job("later", assistant=FREE, tell="stream"))
        await worker.run()
        assert ended(producer, "bad").status is Status.FAILED
        asked = [request.body for request in loopback_provider.requests if "BAD" not in str(request.body)]
        assert ["stream_options" in body for body in asked] == [True, True]


class TestFaultsOfTheProvider:
    async def test_after_a_fault_the_second_attempt_succeeds(
        self, worker: Worker, producer: Producer, loopback_provider: LoopbackProvider
    ) -> None:
        loopback_provider.queue(status(500))
        producer.enqueue(a_job("j"))
        await worker.run()
        (snoozed,) = worker.all(JobSnoozed)
        assert snoozed.code == "server_fault"
        with pytest.raises(TimeoutError):
            ended(producer)
        await worker.finish_all()
        result = ended(producer)
        assert (result.status, result.attempts, result.requests) == (Status.SUCCEEDED, 2, 1)

    async def test_a_fault_holds_up_no_other_job(
        self, worker: Worker, producer: Producer, loopback_provider: LoopbackProvider
    ) -> None:
        loopback_provider.queue(status(500, headers={"Retry-After": "60"}))
        producer.enqueue(a_job("unlucky"))
        await worker.run()
        producer.enqueue(a_job("lucky"))
        await worker.run()
        assert ended(producer, "lucky").succeeded

    @pytest.mark.parametrize(
        ("fault", "code"),
        [
            (status(500), "server_fault"),
            (status(503), "server_fault"),
            (status(409), "conflict"),
            (cut_connection(), "reply_lost"),
            (malformed_json(), "reply_malformed"),
        ],
        ids=["500", "503", "409", "cut", "malformed"],
    )
    async def test_when_its_attempts_are_used_up_the_job_fails_and_says_what_it_met(
        self, worker: Worker, producer: Producer, loopback_provider: LoopbackProvider, fault: Reply, code: str
    ) -> None:
        loopback_provider.script(lambda _body, _n: fault)
        producer.enqueue(a_job("j"))
        await worker.finish_all()
        result = ended(producer)
        assert (result.status, result.error_code) == (Status.FAILED, code)
        assert (result.attempts, loopback_provider.count) == (MAX_ATTEMPTS, MAX_ATTEMPTS)
        assert result.error
        assert f"gave up after {MAX_ATTEMPTS} attempts" in result.error

    async def test_a_refused_request_fails_at_once_in_the_providers_words(
        self, worker: Worker, producer: Producer, loopback_provider: LoopbackProvider
    ) -> None:
        loopback_provider.queue(status(400, {"error": {"message": "max_tokens is too large"}}))
        producer.enqueue(a_job("j"))
        await worker.run()
        result = ended(producer)
        assert (result.status, result.error_code, result.attempts) == (Status.FAILED, "request_refused", 1)
        assert result.error == "HTTP 400: max_tokens is too large"

    async def test_a_refused_request_costs_a_request_and_no_tokens(
        self, worker: Worker, producer: Producer, loopback_provider: LoopbackProvider, redis_client: Redis
    ) -> None:
        loopback_provider.queue(status(400))
        producer.enqueue(a_job("j"))
        await worker.run()
        assert await reserved(redis_client, LANE) == (1, 0)


class TestRateLimits:
    async def test_a_429_cools_the_lane_down_for_all_its_lines_and_burns_no_attempt(
        self,
        worker: Worker,
        producer: Producer,
        loopback_provider: LoopbackProvider,
        engine: Engine,
        redis_client: Redis,
    ) -> None:
        store_assistant(engine, a_config(assistant="acme/p/other"))
        loopback_provider.queue(status(429, headers={"Retry-After": "60"}))
        producer.enqueue(a_job("j"))
        await worker.run()
        producer.enqueue(a_job("other", assistant="acme/p/other"))
        await worker.run()
        first, second = worker.all(JobSnoozed)
        assert (first.job_id, first.code) == ("j", "rate_limited")
        assert 60 <= first.delay_s <= 61
        # Its route's lane was not known, so it was let out, and went back to wait with that lane.
        assert (second.job_id, second.code, second.delay_s) == ("other", "limiter_wait", 0)
        assert loopback_provider.count == 1
        assert await redis_client.zcard(names.PARKED) == 1
        await worker.finish_all()
        assert ended(producer).attempts == ended(producer, "other").attempts == 1
        assert producer.lane_faults(WORKSPACE) == []

    async def test_a_lane_that_is_used_up_lets_its_line_wait_without_a_call(
        self, hire: Hire, producer: Producer, loopback_provider: LoopbackProvider, redis_client: Redis
    ) -> None:
        worker = hire(limits=LaneLimits(rpm=1, tpm=100_000, burst_s=1))
        producer.enqueue_many([a_job()] * 3, batch_id="b")
        for _ in range(3):
            await worker.run()
        assert loopback_provider.count == 1
        assert {event.code for event in worker.all(JobSnoozed)} == {"limiter_wait"}
        # The three are looked up at once, so any of them may come first.
        (first,) = worker.all(JobEnded)
        others = sorted({"b.0", "b.1", "b.2"} - {first.job_id})
        assert sorted(await waiting(redis_client)) == others
        assert ["attempts" in await state(redis_client, job_id) for job_id in others] == [False, False]


class TestWalls:
    """What stands before every job of a lane: nothing fails, and people are told."""

    @pytest.mark.parametrize(
        ("code", "reason"),
        [(401, Code.KEY_REFUSED), (403, Code.KEY_REFUSED), (404, Code.MODEL_UNKNOWN), (402, Code.QUOTA_EXHAUSTED)],
    )
    async def test_a_refusal_keeps_the_jobs_and_is_recorded_until_a_call_succeeds(
        self, worker: Worker, producer: Producer, loopback_provider: LoopbackProvider, code: int, reason: Code
    ) -> None:
        loopback_provider.script(lambda _body, _n: status(code))
        batch = producer.enqueue_many([a_job()] * 2, batch_id="b")
        for _ in range(2 * MAX_ATTEMPTS):
            await worker.run()
            await worker.let_waits_end()
        told = batch.status()
        assert told is not None
        assert told.counts == {}
        (fault,) = producer.lane_faults(WORKSPACE)
        assert fault.code is reason
        assert fault.count > 1
        # One of two may meet the cool-down that the other has just set.
        assert loopback_provider.count >= 2 * MAX_ATTEMPTS
        assert f"HTTP {code}" in fault.reason
        loopback_provider.script(lambda _body, _n: answers("positive"))
        await worker.finish_all()
        assert producer.lane_faults(WORKSPACE) == []
        assert [row.attempts for row in worker.rows()] == [1, 1]

    async def test_a_provider_that_cannot_be_reached_keeps_the_jobs(
        self, hire: Hire, producer: Producer, redis_client: Redis
    ) -> None:
        producer.enqueue(a_job("j"))
        with socket.socket() as bound:  # bound and not listening: nobody else gets the port
            bound.bind(("127.0.0.1", 0))
            cut_off = hire(base_url=f"http://127.0.0.1:{bound.getsockname()[1]}/v1")
            await cut_off.run()
        (snoozed,) = cut_off.all(JobSnoozed)
        assert snoozed.code == "provider_unreachable"
        (fault,) = producer.lane_faults(WORKSPACE)
        assert fault.code is Code.PROVIDER_UNREACHABLE
        assert await redis_client.zscore(names.PARKED, LANE.key)
        producer.forget_lane_faults(a_job())
        assert producer.lane_faults(WORKSPACE) == []
        worker = hire()
        assert await worker.run() == 1
        assert ended(producer).attempts == 1

    async def test_a_provider_that_judges_a_request_is_no_longer_a_wall(
        self, worker: Worker, producer: Producer, loopback_provider: LoopbackProvider
    ) -> None:
        loopback_provider.queue(status(401), status(400))
        producer.enqueue(a_job("j"))
        await worker.finish_all()
        assert ended(producer).error_code == "request_refused"
        assert producer.lane_faults(WORKSPACE) == []


class TestCrashes:
    async def test_a_reply_that_stands_in_the_journal_is_not_bought_again(
        self, worker: Worker, producer: Producer, loopback_provider: LoopbackProvider
    ) -> None:
        """The worker died between journal and SQL."""
        producer.enqueue(a_job("j"))
        (hint,) = await released(worker.queue)
        dying = await worker.queue.claim(hint)
        assert dying
        usage = Usage(prompt_tokens=30, completion_tokens=3)
        reply = ReplyStep(content="negative", finish_reason="stop", model="m1-0613", usage=usage)
        await worker.queue.append(dying, reply)
        await worker.lose_leases()
        await worker.run()
        result = ended(producer)
        assert (result.output, result.model, result.requests) == ("negative", "m1-0613", 1)
        assert (result.prompt_tokens, result.completion_tokens, result.attempts) == (30, 3, 1)
        assert loopback_provider.count == 0
        assert worker.all(JobStarted)[0].replayed_steps == 1
        assert (worker.rows()[0].epoch, dying.epoch) == (3, 1)

    async def test_an_end_that_stands_in_sql_is_not_reached_again(
        self, worker: Worker, producer: Producer, loopback_provider: LoopbackProvider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The worker died between SQL and Redis."""

        async def dies(*_: object) -> None:
            raise asyncio.CancelledError

        batch = producer.enqueue_many([a_job("j")], batch_id="b")
        with monkeypatch.context() as patch:
            patch.setattr(worker.queue, "finish", dies)
            (hint,) = await released(worker.queue)
            with pytest.raises(asyncio.CancelledError):
                await worker.flow.run(hint)
        assert len(worker.rows()) == 1
        await worker.lose_leases()
        loopback_provider.script(lambda _body, _n: answers("negative"))
        await worker.run()
        assert ended(producer).output == "positive"
        assert loopback_provider.count == 1
        told = batch.status()
        assert told is not None
        assert told.counts == {Status.SUCCEEDED: 1}

    async def test_an_end_whose_content_sql_may_not_hold_is_told_with_it_all_the_same(
        self, worker: Worker, producer: Producer, loopback_provider: LoopbackProvider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The same, for a job that is not to be recorded; a refusal leaves no reply in the journal either."""

        async def dies(*_: object) -> None:
            raise asyncio.CancelledError

        loopback_provider.queue(status(400, {"error": {"message": "no CANARY here"}}))
        producer.enqueue(a_job("j", do_not_record=True))
        with monkeypatch.context() as patch:
            patch.setattr(worker.queue, "finish", dies)
            (hint,) = await released(worker.queue)
            with pytest.raises(asyncio.CancelledError):
                await worker.flow.run(hint)
        (row,) = worker.rows()
        assert (row.status, row.error) == ("failed", None)
        await worker.lose_leases()
        await worker.run()
        assert "CANARY" in (ended(producer).error or "")
        assert loopback_provider.count == 1

    async def test_a_worker_that_was_paused_cannot_write_what_it_still_had(
        self, worker: Worker, hire: Hire, producer: Producer, loopback_provider: LoopbackProvider
    ) -> None:
        go = threading.Event()
        loopback_provider.queue(hang_until(go, then=answers("negative")), answers("positive"))
        batch = producer.enqueue_many([a_job("j")], batch_id="b")
        (hint,) = await released(worker.queue)
        paused = asyncio.create_task(worker.flow.run(hint))
        await asyncio.to_thread(loopback_provider.wait_for_requests, 1)
        await worker.lose_leases()
        other = hire()
        await other.run()
        go.set()
        await asyncio.wait_for(paused, DEADLINE_S)
        (refused,) = worker.all(StaleWorkRefused)
        assert (refused.job_id, refused.batch_id, refused.at) == ("j", "b", "journal")
        assert worker.all(JobEnded) == []
        # Both calls are over, and both are counted.
        assert not await worker.redis.exists(f"aq:held:{LANE.key}")
        assert (await reserved(worker.redis, LANE))[0] == 2
        assert [row.output for row in other.rows()] == ["positive"]
        assert ended(producer).output == "positive"
        told = batch.status()
        assert told is not None
        assert told.counts == {Status.SUCCEEDED: 1}

    async def test_a_job_that_is_cancelled_while_it_waits_for_its_turn_is_not_bought(
        self, hire: Hire, producer: Producer, loopback_provider: LoopbackProvider
    ) -> None:
        worker = hire(limits=LaneLimits(rpm=600, tpm=100_000, burst_s=1))
        producer.enqueue(a_job("first"))
        await worker.run()
        batch = producer.enqueue_many([a_job("j")], batch_id="b")
        (hint,) = await released(worker.queue)
        await worker.limiter.cool_down(LANE, delay_s=1)
        waits = asyncio.create_task(worker.flow.run(hint))
        await until(lambda: worker.redis.exists(f"aq:tickets:{LANE.key}"))
        batch.cancel()
        await asyncio.wait_for(waits, DEADLINE_S)
        assert loopback_provider.count == 1
        assert ended(producer).status is Status.CANCELLED
        assert not await worker.redis.exists(f"aq:held:{LANE.key}")

    async def test_a_job_that_is_cancelled_hears_of_it_while_its_turn_is_far_away_and_gives_up_its_place(
        self, hire: Hire, producer: Producer, loopback_provider: LoopbackProvider
    ) -> None:
        go = threading.Event()
        loopback_provider.queue(hang_until(go, then=answers("positive")))
        wide, narrow = [
            hire(limits=LaneLimits(rpm=6000, tpm=1_000_000, burst_s=60, max_concurrency=most)) for most in (2, 1)
        ]
        producer.enqueue(a_job("slow"))
        (hint,) = await released(wide.queue)
        slow = asyncio.create_task(wide.flow.run(hint))
        await asyncio.to_thread(loopback_provider.wait_for_requests, 1)
        batch = producer.enqueue_many([a_job("j")], batch_id="b")
        (hint,) = await released(narrow.queue)
        waits = asyncio.create_task(narrow.flow.run(hint))
        await until(lambda: narrow.redis.exists(f"aq:tickets:{LANE.key}"))
        batch.cancel()
        await asyncio.wait_for(waits, DEADLINE_S)
        assert ended(producer).status is Status.CANCELLED
        await narrow.limiter.aclose()
        assert not await narrow.redis.exists(f"aq:tickets:{LANE.key}")
        assert not slow.done()
        go.set()
        await asyncio.wait_for(slow, DEADLINE_S)
        assert (await reserved(narrow.redis, LANE))[0] == 1
        assert not await narrow.redis.exists(f"aq:held:{LANE.key}")
        assert loopback_provider.count == 1

    async def test_a_worker_that_hears_of_its_loss_stops_waiting_for_the_provider(
        self, worker: Worker, producer: Producer, loopback_provider: LoopbackProvider
    ) -> None:
        loopback_provider.queue(hang_until(threading.Event()))
        producer.enqueue_many([a_job(), a_job()], batch_id="b")
        lost, kept = await released(worker.queue)
        running = asyncio.create_task(worker.flow.run(lost))
        await asyncio.to_thread(loopback_provider.wait_for_requests, 1)
        go = threading.Event()
        loopback_provider.queue(hang_until(go, then=answers("positive")))
        other = asyncio.create_task(worker.flow.run(kept))
        await asyncio.to_thread(loopback_provider.wait_for_requests, 2)
        await worker.redis.zadd(names.LEASES, {lost.job_id: 1})
        await worker.queue.sweep()
        await worker.leases._renew()
        await asyncio.wait_for(running, DEADLINE_S)
        (refused,) = worker.all(StaleWorkRefused)
        assert (refused.job_id, refused.at) == (lost.job_id, "lease")
        go.set()
        await asyncio.wait_for(other, DEADLINE_S)
        assert ended(producer, kept.job_id).succeeded
        assert worker.leases.count == 0

    async def test_an_error_of_our_own_ends_the_job_after_its_attempts(
        self, worker: Worker, producer: Producer, engine: Engine, loopback_provider: LoopbackProvider
    ) -> None:
        with engine.begin() as connection:
            connection.execute(text("UPDATE assistant_versions SET config = '{}'"))
        producer.enqueue(a_job("j"))
        await worker.finish_all()
        result = ended(producer)
        assert (result.status, result.error_code) == (Status.FAILED, "internal_error")
        assert result.attempts == len(worker.all(JobCrashed)) == MAX_ATTEMPTS
        assert result.error
        assert f"gave up after {MAX_ATTEMPTS} attempts: ValidationError" in result.error
        assert loopback_provider.count == 0

    @pytest.mark.parametrize("attempts_before", [0, MAX_ATTEMPTS - 1])
    async def test_an_end_that_the_database_does_not_take_is_a_failure_and_not_bought_again(
        self,
        worker: Worker,
        producer: Producer,
        engine: Engine,
        loopback_provider: LoopbackProvider,
        attempts_before: int,
    ) -> None:
        refuse_content(engine, "positive")
        producer.enqueue(a_job("j", thread_id="t", messages=[user("q")]))
        await worker.redis.hset(names.job("j"), "attempts", str(attempts_before))
        loopback_provider.script(lambda _body, _n: answers("positive"))
        await worker.finish_all()
        result = ended(producer)
        assert (result.status, result.error_code, result.requests) == (Status.FAILED, "internal_error", 1)
        assert (result.attempts, loopback_provider.count) == (MAX_ATTEMPTS, 1)

    async def test_a_hint_that_comes_while_redis_is_away_is_told_and_harms_nothing(
        self, hire: Hire, tmp_path: Path
    ) -> None:
        nowhere = Redis.from_url(f"unix://{tmp_path}/nobody.sock", retry=None)
        worker = hire(redis=nowhere)
        await worker.flow.run(Hint("j", 1))
        (fault,) = worker.all(ServiceFault)
        assert fault.part == "redis"
        await nowhere.aclose()


def refuse_content(engine: Engine, content: str) -> None:
    """Have the database refuse this content of a message, for good."""
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text(f"ALTER TABLE thread_messages ADD CHECK (content <> '{content}')"))
        else:
            connection.execute(
                text(
                    "CREATE TRIGGER refuses BEFORE INSERT ON thread_messages "
                    f"WHEN NEW.content = '{content}' BEGIN SELECT RAISE(ABORT, 'refused'); END"
                )
            )


class TestStoreAway:
    @pytest.fixture
    def writes_are_refused(
        self, engine: Engine, request: pytest.FixtureRequest
    ) -> Callable[[], contextlib.AbstractContextManager[None]]:
        @contextlib.contextmanager
        def locked() -> Iterator[None]:
            other = sqlite3.connect(engine.url.database or "", isolation_level=None)
            other.execute("BEGIN IMMEDIATE")
            yield
            other.close()

        @contextlib.contextmanager
        def read_only() -> Iterator[None]:
            def set_to(value: str) -> None:
                with psycopg.connect(request.getfixturevalue("postgres_server_url"), autocommit=True) as connection:
                    connection.execute(
                        f'ALTER DATABASE "{engine.url.database}" SET default_transaction_read_only = {value}'
                    )
                engine.dispose()

            set_to("on")
            yield
            set_to("off")

        return locked if engine.dialect.name == "sqlite" else read_only

    async def test_an_end_waits_in_redis_and_is_settled_without_a_call_when_sql_is_back(
        self,
        worker: Worker,
        producer: Producer,
        loopback_provider: LoopbackProvider,
        writes_are_refused: Callable[[], contextlib.AbstractContextManager[None]],
        redis_client: Redis,
    ) -> None:
        producer.enqueue(a_job("j", thread_id="t", messages=[user("good")]))
        with writes_are_refused():
            for _ in range(MAX_ATTEMPTS + 1):
                await worker.run()
                await worker.let_waits_end()
            assert {event.code for event in worker.all(JobSnoozed)} == {"store_away"}
            assert await redis_client.llen(names.journal("j")) == 2
        (hint,) = await released(worker.queue)
        held = await worker.queue.claim(hint)
        assert held
        assert [type(step) for step in held.journal] == [ReplyStep, ResultStep]
        assert held.attempts == 0
        await worker.lose_leases()
        await worker.run()
        assert ended(producer).output == "positive"
        assert (ended(producer).attempts, loopback_provider.count) == (1, 1)
        with Session(worker.engine) as session:
            assert [message.role for message in session.exec(select(ThreadMessage))] == ["user", "assistant"]

    async def test_a_job_that_cannot_even_be_looked_up_waits_and_nothing_is_asked(
        self, hire: Hire, producer: Producer, loopback_provider: LoopbackProvider, tmp_path: Path, redis_client: Redis
    ) -> None:
        worker = hire(engine=engine_for(f"sqlite:///{tmp_path}"))
        producer.enqueue(a_job("j"))
        await worker.run()
        (snoozed,) = worker.all(JobSnoozed)
        assert snoozed.code == "store_away"
        assert loopback_provider.count == 0
        assert "attempts" not in await state(redis_client, "j")


# One nano a token.
PRICE = Price(prompt_nano=1_000_000, completion_nano=1_000_000)


class TestSpending:
    async def test_what_a_job_cost_is_told_wherever_its_tokens_are(
        self, hire: Hire, producer: Producer, loopback_provider: LoopbackProvider
    ) -> None:
        worker = hire(price=PRICE)
        batch = producer.enqueue_many([a_job("j")], batch_id="b")
        await worker.run()
        result = ended(producer)
        assert result.cost_nano == result.prompt_tokens + result.completion_tokens > 0
        (row,), told = worker.rows(), batch.status()
        assert told is not None
        (called,), (job_ended,) = worker.all(ProviderCalled), worker.all(JobEnded)
        assert {row.cost_nano, told.cost_nano, called.cost_nano, job_ended.cost_nano} == {result.cost_nano}

    @pytest.mark.parametrize("scope", ["batch", "workspace"])
    async def test_jobs_beyond_a_cap_end_as_over_budget_without_a_call_or_a_turn(
        self, hire: Hire, producer: Producer, loopback_provider: LoopbackProvider, redis_client: Redis, scope: str
    ) -> None:
        rows, cap_nano = 80, 400
        worker = hire(price=PRICE, cap=SpendCap(nano=cap_nano if scope == "workspace" else None))
        cap = cap_nano / NANOS if scope == "batch" else None
        batch = producer.enqueue_many([a_job()] * rows, batch_id="b", spend_cap=cap)
        while await redis_client.keys(names.job("*")):
            await worker.finish_some()
        told = batch.status()
        assert told is not None
        succeeded = told.counts[Status.SUCCEEDED]
        assert told.counts == {Status.SUCCEEDED: succeeded, Status.OVER_BUDGET: rows - succeeded}
        assert {row.error_code for row in worker.rows()} == {None, f"{scope}_budget"}
        (account,) = producer.accounts()
        assert told.cost_nano == account.spent_nano <= cap_nano
        # As many as fit: what is left is less than a call may cost.
        most_nano = worker.estimate_nano()
        assert cap_nano - account.spent_nano < most_nano
        assert account.reserved_nano == told.reserved_nano == 0
        requests, _tokens = await reserved(redis_client, LANE)
        assert succeeded == loopback_provider.count == requests > 1

    @pytest.mark.parametrize("lost", [cut_connection(), status(504)])
    async def test_a_call_of_unknown_fate_stays_spent_and_costs_the_job_nothing(
        self, hire: Hire, producer: Producer, loopback_provider: LoopbackProvider, lost: Reply
    ) -> None:
        worker = hire(price=PRICE)
        loopback_provider.queue(lost)
        batch = producer.enqueue_many([a_job("j")], batch_id="b", spend_cap=1)
        await worker.finish_all()
        told, result = batch.status(), ended(producer)
        assert told is not None
        assert loopback_provider.count == 2
        assert told.spent_nano == result.cost_nano + worker.estimate_nano()
        assert (told.cost_nano, told.reserved_nano) == (result.cost_nano, 0)

    @pytest.mark.parametrize("http_status", [400, 429, 503])
    async def test_a_call_that_the_provider_refused_holds_and_spends_nothing(
        self, hire: Hire, producer: Producer, loopback_provider: LoopbackProvider, http_status: int
    ) -> None:
        worker = hire(price=PRICE)
        loopback_provider.queue(status(http_status))
        batch = producer.enqueue_many([a_job("j")], batch_id="b", spend_cap=1)
        await worker.run()
        told = batch.status()
        assert told is not None
        assert (told.spent_nano, told.reserved_nano) == (0, 0)

    async def test_where_a_provider_counts_nothing_the_most_that_it_may_have_cost_counts(
        self, hire: Hire, producer: Producer, loopback_provider: LoopbackProvider
    ) -> None:
        worker = hire(price=PRICE)
        message = {"role": "assistant", "content": '"positive"'}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        loopback_provider.queue(status(200, {"model": "m1", "choices": [choice]}))
        batch = producer.enqueue_many([a_job("j")], batch_id="b", spend_cap=1)
        await worker.run()
        told, result = batch.status(), ended(producer)
        assert told is not None
        assert result.status is Status.SUCCEEDED
        assert result.cost_nano == told.spent_nano == worker.estimate_nano()

    @pytest.mark.parametrize(("content", "ends_as"), [("positive", Status.SUCCEEDED), ("no label", Status.OVER_BUDGET)])
    async def test_a_job_of_a_spent_batch_ends_by_what_it_has_bought_and_buys_nothing_more(
        self, worker: Worker, producer: Producer, loopback_provider: LoopbackProvider, content: str, ends_as: Status
    ) -> None:
        producer.enqueue_many([a_job("j")], batch_id="b")
        (hint,) = await released(worker.queue)
        claimed = await worker.queue.claim(hint)
        assert claimed is not None
        bought = ReplyStep(content=content, finish_reason="stop", model="m1", usage=Usage(prompt_tokens=9), cost_nano=9)
        await worker.queue.append(claimed, bought, index=0, account=names.spend(WORKSPACE, "total"))
        await worker.redis.hset(names.batch("b"), "over_budget_ms", "1")
        await worker.lose_leases()
        await worker.finish_some()
        result = ended(producer)
        assert (result.status, result.requests, result.cost_nano) == (ends_as, 1, 9)
        assert loopback_provider.count == 0

    async def test_a_cap_that_cannot_hold_for_want_of_a_price_fails_the_job_before_any_call(
        self, worker: Worker, producer: Producer, loopback_provider: LoopbackProvider
    ) -> None:
        producer.enqueue_many([a_job("j")], batch_id="b", spend_cap=1)
        await worker.run()
        result = ended(producer)
        assert (result.status, result.error_code) == (Status.FAILED, "no_price")
        assert "no price for model m1 at 127.0.0.1" in str(result.error)
        assert loopback_provider.count == 0


class TestShutdown:
    async def test_a_job_that_waits_for_its_turn_gives_it_back_and_goes_to_the_head_of_its_line(
        self, hire: Hire, producer: Producer, loopback_provider: LoopbackProvider, redis_client: Redis
    ) -> None:
        worker = hire(limits=LaneLimits(rpm=600, tpm=100_000, burst_s=1))
        producer.enqueue(a_job())
        await worker.run()
        producer.enqueue_many([a_job()] * 3, batch_id="b")
        hint, *_others = await released(worker.queue)
        await worker.limiter.cool_down(LANE, delay_s=4)
        waits = asyncio.create_task(worker.flow.run(hint))
        await until(lambda: redis_client.exists(f"aq:tickets:{LANE.key}"))
        worker.clock.stop()
        await asyncio.wait_for(waits, DEADLINE_S)
        (snoozed,) = worker.all(JobSnoozed)
        assert (snoozed.code, snoozed.delay_s) == ("shutting_down", 0)
        assert (await waiting(redis_client))[0] == "b.0"
        assert loopback_provider.count == 1
        await worker.limiter.aclose()
        assert not await redis_client.exists(f"aq:tickets:{LANE.key}")
        assert (await reserved(redis_client, LANE))[0] == 1

    async def test_a_worker_that_stood_still_makes_no_call_for_a_job_that_was_taken_from_it(
        self, hire: Hire, producer: Producer, loopback_provider: LoopbackProvider, redis_client: Redis
    ) -> None:
        worker = hire()
        producer.enqueue(a_job())
        await worker.run()
        producer.enqueue_many([a_job()] * 2, batch_id="b")
        taken, kept = await released(worker.queue)
        await worker.limiter.cool_down(LANE, delay_s=2)
        waits = [asyncio.create_task(worker.flow.run(hint)) for hint in (taken, kept)]

        async def both_wait() -> bool:
            return bool(await redis_client.llen(f"aq:tickets:{LANE.key}") == 2)

        await until(both_wait)
        await redis_client.zadd(names.LEASES, {taken.job_id: 1})
        assert (await worker.queue.sweep()).recovered == 1
        worker.stood_still_s = LEASE_S
        await asyncio.wait_for(asyncio.gather(*waits), DEADLINE_S)
        (refused,) = worker.all(StaleWorkRefused)
        assert (refused.job_id, refused.at) == (taken.job_id, "confirm")
        # The first one's, and the one that was still its own.
        assert loopback_provider.count == 2

    async def test_a_job_that_waited_for_its_turn_tells_how_long(
        self, hire: Hire, producer: Producer, loopback_provider: LoopbackProvider
    ) -> None:
        worker = hire(limits=LaneLimits(rpm=60, tpm=100_000, burst_s=0.01))
        producer.enqueue_many([a_job()] * 2, batch_id="b")
        await worker.run()
        (told,) = worker.all(LimiterWaited)
        assert told.lane == LANE
        assert told.wait_s > 0
        assert loopback_provider.count == 2

    async def test_a_worker_that_shuts_down_begins_no_job(
        self, worker: Worker, producer: Producer, loopback_provider: LoopbackProvider, redis_client: Redis
    ) -> None:
        producer.enqueue(a_job("j"))
        worker.clock.stop()
        await worker.run()
        assert worker.told == []
        assert (await state(redis_client, "j"))["state"] == "waiting"

    async def test_a_call_in_flight_is_finished(
        self, worker: Worker, producer: Producer, loopback_provider: LoopbackProvider
    ) -> None:
        go = threading.Event()
        loopback_provider.queue(hang_until(go, then=answers("positive")))
        producer.enqueue(a_job("j"))
        (hint,) = await released(worker.queue)
        running = asyncio.create_task(worker.flow.run(hint))
        await asyncio.to_thread(loopback_provider.wait_for_requests, 1)
        worker.clock.stop()
        go.set()
        await asyncio.wait_for(running, DEADLINE_S)
        assert ended(producer).succeeded


async def test_no_event_and_no_result_holds_a_secret_or_a_prompt(
    worker: Worker, producer: Producer, loopback_provider: LoopbackProvider
) -> None:
    prompt, key = "PROMPT-CANARY good", "sk-CANARY"
    loopback_provider.queue(status(401, {"error": {"message": f"wrong key {key}"}}), status(500), answers("positive"))
    producer.enqueue(a_job("j", variables={"review": prompt}))
    await worker.finish_all()
    assert "PROMPT-CANARY" in str(loopback_provider.requests[-1].body)
    assert "CANARY" not in repr(worker.told)
    assert "CANARY" not in repr(ended(producer))


async def test_an_unknown_job_has_no_result(producer: Producer) -> None:
    with pytest.raises(ProducerError, match="not known"):
        ended(producer, "nobody")


class TestDeaths:
    async def die(self, worker: Worker, *, times: int) -> None:
        """Have all jobs that wait be claimed and lost with their worker, so often."""
        for _ in range(times):
            assert all([await worker.queue.claim(hint) for hint in await released(worker.queue)])
            await worker.lose_leases()

    async def test_a_job_that_ran_at_as_many_deaths_as_it_may_ends_and_nothing_of_it_runs(
        self, worker: Worker, producer: Producer, loopback_provider: LoopbackProvider
    ) -> None:
        batch = producer.enqueue_many([a_job("j")], batch_id="b")
        await self.die(worker, times=MAX_KILLS)
        assert await worker.run() == 1
        result = ended(producer)
        assert (result.status, result.error_code, result.attempts) == (Status.FAILED, "killed_workers", 0)
        assert f"{MAX_KILLS} times" in (result.error or "")
        assert loopback_provider.count == 0
        told = batch.status()
        assert told is not None
        assert told.counts == {Status.FAILED: 1}
        assert worker.rows()[0].result() == result

    async def test_a_job_whose_end_stands_in_sql_keeps_it_however_often_its_workers_died(
        self, worker: Worker, producer: Producer, redis_client: Redis
    ) -> None:
        producer.enqueue(a_job("j"))
        await worker.run()
        # As if each time the worker had died between its commit and its word to Redis.
        await redis_client.delete(names.result("j"))
        producer.enqueue(a_job("j"))
        await self.die(worker, times=MAX_KILLS)
        await worker.run()
        assert ended(producer).status is Status.SUCCEEDED

    async def test_a_hint_that_was_lost_and_a_job_that_was_given_back_are_no_deaths(
        self, worker: Worker, producer: Producer, redis_client: Redis
    ) -> None:
        producer.enqueue(a_job("j"))
        await released(worker.queue)
        await worker.lose_leases()
        (hint,) = await released(worker.queue)
        held = await worker.queue.claim(hint)
        assert held is not None
        await worker.queue.snooze(held, delay_s=0, burns_attempt=False, hold_lane=False)
        assert "deaths" not in await state(redis_client, "j")

    async def test_of_those_that_one_death_more_would_end_one_runs_at_a_time_and_others_beside_it(
        self, worker: Worker, producer: Producer, loopback_provider: LoopbackProvider, redis_client: Redis
    ) -> None:
        for job_id in ("suspect-1", "suspect-2"):
            producer.enqueue(a_job(job_id))
        await self.die(worker, times=MAX_KILLS - 1)
        producer.enqueue(a_job("innocent"))
        go = threading.Event()
        loopback_provider.queue(hang_until(go, then=answers("positive")), hang_until(go, then=answers("positive")))
        running = asyncio.create_task(worker.run())
        snoozed = await worker.hear(JobSnoozed)
        await asyncio.to_thread(loopback_provider.wait_for_requests, 2)
        assert (snoozed.code, loopback_provider.count) == ("suspect_wait", 2)
        waiting = await state(redis_client, snoozed.job_id)
        assert (waiting["state"], waiting.get("attempts")) == ("snoozed", None)
        assert await redis_client.zscore(names.LEASES, snoozed.job_id) is None
        # It comes back, and the place is still taken.
        await worker.let_waits_end()
        assert await worker.run() == 1
        assert len(worker.all(JobSnoozed)) == 2
        go.set()
        await running
        await worker.finish_all()
        assert {ended(producer, job).status for job in ("suspect-1", "suspect-2", "innocent")} == {Status.SUCCEEDED}
        assert loopback_provider.count == 3
