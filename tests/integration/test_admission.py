"""Admission in a real Valkey, without workers: who is let out next, what waits, and what people stop."""

from __future__ import annotations

import asyncio
import hashlib
import struct
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlmodel import Session, select

from producer import Producer
from producer.entries import CHUNK_JOBS
from producer.lanes import Kind, Verb
from schemas import InvokeJob, JobRecord, ProducerError, Status, Usage, names
from schemas.batch import BatchState, end_state
from schemas.database import engine_for, ensure_tables
from schemas.lane import Lane, LaneFault
from schemas.outcome import Code
from schemas.tables import Batch, Delivery
from tests.given import a_job, a_result, let_leases_lapse, let_parked_lanes_open, let_snoozes_end, text
from worker.admission.releases import Released, Releases
from worker.admission.sweeper import Sweeper
from worker.events import BatchEnded, Events, ServiceFault
from worker.queue.queue import CalledOff, Claimed, JobQueue
from worker.queue.steps import ReplyStep
from worker.store.sql import SqlStore

pytestmark = pytest.mark.anyio

# Hundredfold what any test here uses, so that only what a test says is short.
AMPLE = 600_000


def _limits(*, rpm: int, tokens: int, most: int) -> Any:
    """Return what the limiter keeps of a lane that is idle, see worker/limits/turns.lua."""
    limits = (rpm, 1000 * AMPLE, 1_000_000, 60_000_000, 1, most, 60_000_000)
    state = [0.0] * 17
    state[12] = tokens
    return {"limits": struct.pack("<7d", *limits), "state": struct.pack("<17d", *state)}


class Queue:
    """A queue with what the tests do to it; every claim of a hint succeeds unless a test says otherwise."""

    def __init__(self, redis: Redis, producer: Producer) -> None:
        self.redis = redis
        self.producer = producer
        self.jobs = JobQueue(redis)
        self.releases = Releases(redis)
        self.clock: TestedClock | None = None

    async def knows(
        self, assistant: str, *, model: str = "m", tokens: int = 100, rpm: int = AMPLE, most: int = 0
    ) -> str:
        """Let the assistant's lane be known, with its limits; return the lane."""
        lane = Lane(workspace=assistant.split("/", maxsplit=1)[0], provider="host", model=model).key
        await self.redis.hset(names.ROUTES, a_job(assistant=assistant).route, lane)
        await self.redis.hset(names.limit(lane), mapping=_limits(rpm=rpm, tokens=tokens, most=most))
        return lane

    async def has(self, capacity: int) -> None:
        """Let there be workers of so much capacity."""
        seconds = await self.now()
        await self.redis.hset(names.WORKERS, "a-worker", f"{capacity} {(seconds + 60) * 1000}")

    async def now(self) -> int:
        """Return the server's time, s."""
        return int((await self.redis.time())[0]) if self.clock is None else await self.clock.now()

    async def next_ms(self) -> None:
        """Wait until the server's clock shows another millisecond: what came before is older."""
        began = await self.redis.time()
        while (now := await self.redis.time())[0] == began[0] and now[1] // 1000 == began[1] // 1000:
            pass

    async def look(self, limit: int = 1000) -> Released:
        """Let workers ask once."""
        return await self.releases.release(limit)

    async def take(self, limit: int = 1000) -> list[str]:
        """Return the ids of the jobs that are released by one look."""
        return [hint.job_id for hint in (await self.look(limit)).hints]

    async def claim(self, limit: int = 1000) -> list[Claimed]:
        """Release, and claim all of it."""
        held = [await self.jobs.claim(hint) for hint in (await self.look(limit)).hints]
        return [each for each in held if each]

    async def finish(self, held: Claimed) -> None:
        """End a job: as it was called off, if it was."""
        status = Status(held.called_off) if held.called_off else Status.SUCCEEDED
        await self.jobs.finish(held, a_result(held.record, status=status))

    async def serve(self, count: int) -> list[str]:
        """Let one job out at a time and end it; return their ids in order."""
        served = []
        for _ in range(count):
            for held in await self.claim(1):
                served.append(held.id)
                await self.finish(held)
        return served

    async def expire(self, batch_id: str) -> None:
        """Let the batch's time be over."""
        await self.redis.zadd(names.EXPIRING, {batch_id: 1})
        assert await self.jobs.expire_batches() == 1

    async def drain(self) -> list[Claimed]:
        """Take what was called off while it waited, and claim it."""
        held = [await self.jobs.claim(hint) for hint in await self.jobs.drain(1000)]
        return [each for each in held if each]

    async def drain_all(self) -> list[str]:
        """Bring all that was called off while it waited to its end; return the ids."""
        ended = []
        while held := await self.drain():
            for each in held:
                assert each.called_off
                await self.finish(each)
                ended.append(each.id)
        return ended

    def stop(self, verb: Verb, kind: Kind, name: str) -> int:
        return self.producer.lanes.stop(verb, kind, name)

    async def places(self) -> dict[str, int]:
        """Return how many jobs of each workspace are out."""
        return {text(key): int(value) for key, value in (await self.redis.hgetall(names.PLACES)).items()}


@pytest.fixture
async def queue(redis_client: Redis, producer: Producer) -> Queue:
    return Queue(redis_client, producer)


def of(assistant: str, count: int, **fields: Any) -> list[InvokeJob]:
    return [a_job(assistant=assistant, **fields) for _ in range(count)]


def reply() -> ReplyStep:
    usage = Usage(prompt_tokens=10, completion_tokens=2)
    return ReplyStep(content="positive", finish_reason="stop", model="m1", usage=usage)


def by_workspace(ids: list[str]) -> Counter[str]:
    return Counter(job_id.split(".")[0].rstrip("0123456789") for job_id in ids)


class TestFairness:
    async def test_workspaces_get_tokens_by_their_weight_whatever_the_size_of_their_jobs(self, queue: Queue) -> None:
        for workspace, tokens in (("small", 50), ("big", 500), ("heavy", 100)):
            await queue.knows(f"{workspace}/p/a", tokens=tokens)
            queue.producer.enqueue_many(of(f"{workspace}/p/a", 400), batch_id=workspace)
        await queue.releases.set_weights({"heavy": 2})
        await queue.has(1)
        served = by_workspace(await queue.serve(330))
        tokens_of = {"small": served["small"] * 50, "big": served["big"] * 500, "heavy": served["heavy"] * 100 / 2}
        assert max(tokens_of.values()) - min(tokens_of.values()) <= 500

    async def test_a_workspace_that_was_idle_has_saved_nothing_up(self, queue: Queue) -> None:
        for workspace in ("busy", "idle"):
            await queue.knows(f"{workspace}/p/a")
        queue.producer.enqueue_many(of("idle/p/a", 1), batch_id="idle")
        queue.producer.enqueue_many(of("busy/p/a", 300), batch_id="busy")
        await queue.has(1)
        await queue.serve(200)
        queue.producer.enqueue_many(of("idle/p/a", 100), batch_id="idle2")
        assert 18 <= by_workspace(await queue.serve(40))["idle"] <= 22

    async def test_a_workspace_that_leaves_ahead_comes_back_ahead_and_owes_only_until_the_others_are_level(
        self, queue: Queue
    ) -> None:
        await queue.knows("busy/p/a", tokens=100)
        await queue.knows("ahead/p/a", tokens=1000)
        queue.producer.enqueue_many(of("busy/p/a", 300), batch_id="busy")
        queue.producer.enqueue_many(of("ahead/p/a", 1), batch_id="ahead")
        await queue.has(1)
        assert "ahead.0" in await queue.serve(3)
        queue.producer.enqueue_many(of("ahead/p/a", 5), batch_id="ahead2")
        served = await queue.serve(22)
        assert by_workspace(served[:7])["ahead"] == 0
        assert by_workspace(served)["ahead"] == 2

    async def test_what_a_workspace_was_ahead_is_forgotten_when_nobody_waited(self, queue: Queue) -> None:
        for workspace in ("alone", "other"):
            await queue.knows(f"{workspace}/p/a", tokens=100)
        queue.producer.enqueue_many(of("alone/p/a", 200), batch_id="alone")
        await queue.has(1)
        await queue.serve(200)
        queue.producer.enqueue_many(of("alone/p/a", 100), batch_id="alone2")
        queue.producer.enqueue_many(of("other/p/a", 100), batch_id="other")
        assert 9 <= by_workspace(await queue.serve(20))["alone"] <= 11

    async def test_interactive_jobs_come_first_in_their_workspace_and_not_before_others(self, queue: Queue) -> None:
        for workspace in ("one", "two"):
            await queue.knows(f"{workspace}/p/a")
        queue.producer.enqueue_many(of("one/p/a", 10), batch_id="one")
        queue.producer.enqueue_many(of("two/p/a", 10), batch_id="two")
        for number in range(3):
            queue.producer.enqueue(a_job(f"now{number}", assistant="one/p/a"))
        await queue.has(1)
        served = await queue.serve(8)
        assert [job_id for job_id in served if not job_id.startswith("two")] == ["now0", "now1", "now2", "one.0"]
        assert by_workspace(served)["two"] == 4

    async def test_five_thousand_rows_do_not_delay_a_later_batch_of_the_same_assistant(self, queue: Queue) -> None:
        await queue.knows("one/p/a")
        queue.producer.enqueue_many(of("one/p/a", 5000), batch_id="long")
        queue.producer.enqueue_many(of("one/p/a", 20), batch_id="short")
        await queue.has(1)
        assert by_workspace(await queue.serve(41))["short"] == 20

    @pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
    async def test_a_weight_that_is_no_positive_number_is_refused(self, queue: Queue, weight: float) -> None:
        with pytest.raises(ValueError, match="'w' must be a number above 0"):
            await queue.releases.set_weights({"w": weight})

    @pytest.mark.parametrize("weight", ["0", "-3", "heavy", "nan"])
    async def test_nonsense_that_somebody_wrote_as_a_weight_counts_as_one(self, queue: Queue, weight: str) -> None:
        await queue.redis.hset(names.WEIGHTS, "acme", weight)
        queue.producer.enqueue_many([a_job()] * 3, batch_id="b")
        await queue.has(10)
        assert len(await queue.take()) == 3


class TestPlaces:
    async def test_slow_calls_of_one_workspace_leave_places_for_the_next_one(self, queue: Queue) -> None:
        for workspace in ("slow", "late"):
            await queue.knows(f"{workspace}/p/a")
        queue.producer.enqueue_many(of("slow/p/a", 500), batch_id="slow")
        await queue.has(100)
        assert len(await queue.claim()) == 90
        assert await queue.take() == []
        queue.producer.enqueue_many(of("late/p/a", 50), batch_id="late")
        assert await queue.take() == [f"late.{row}" for row in range(10)]
        assert await queue.places() == {"slow": 90, "late": 10}

    async def test_nobody_who_holds_a_share_gets_the_kept_places_and_whoever_comes_next_does(
        self, queue: Queue
    ) -> None:
        for workspace in ("a", "b", "c"):
            await queue.knows(f"{workspace}/p/a")
        for workspace in ("a", "b"):
            queue.producer.enqueue_many(of(f"{workspace}/p/a", 200), batch_id=workspace)
        await queue.has(100)
        assert by_workspace(await queue.take()) == {"a": 45, "b": 45}
        assert await queue.take() == []
        queue.producer.enqueue_many(of("c/p/a", 200), batch_id="c")
        assert by_workspace(await queue.take()) == {"c": 10}

    async def test_who_holds_its_share_does_not_stand_in_the_way_of_many_that_hold_none(self, queue: Queue) -> None:
        await queue.knows("slow/p/a")
        queue.producer.enqueue_many(of("slow/p/a", 200), batch_id="slow")
        await queue.has(100)
        assert len(await queue.take()) == 90
        for number in range(300):
            queue.producer.enqueue(a_job(f"n{number}", assistant=f"w{number}/p/a"))
        assert by_workspace(await queue.take()) == {"n": 10}

    async def test_where_there_are_few_places_none_is_kept(self, queue: Queue) -> None:
        queue.producer.enqueue_many([a_job()] * 100, batch_id="b")
        await queue.has(16)
        assert len(await queue.take()) == 20

    async def test_places_are_counted_through_every_way_in_which_a_job_comes_back_or_ends(self, queue: Queue) -> None:
        await queue.knows("w/p/a")
        queue.producer.enqueue_many(of("w/p/a", 8), batch_id="w")
        await queue.has(20)
        hints = (await queue.look()).hints
        assert await queue.places() == {"w": 8}
        await queue.jobs.give_back(hints[0])
        held = [each for each in [await queue.jobs.claim(hint) for hint in hints[1:6]] if each]
        await queue.finish(held[0])
        await queue.jobs.snooze(held[1], delay_s=60, burns_attempt=False, hold_lane=False)
        await queue.jobs.snooze(held[2], delay_s=0, burns_attempt=False, hold_lane=False)
        assert await queue.places() == {"w": 4}
        queue.stop("pause", "batch", "w")
        assert await queue.jobs.claim(hints[6]) is None
        assert await queue.places() == {"w": 3}
        await queue.jobs.sweep()
        await let_leases_lapse(queue.redis)
        await queue.jobs.sweep()
        assert await queue.places() == {}

    async def test_jobs_that_end_as_cancelled_take_no_place_from_others(self, queue: Queue) -> None:
        for workspace in ("gone", "w"):
            await queue.knows(f"{workspace}/p/a")
        queue.producer.enqueue_many(of("gone/p/a", 300), batch_id="gone")
        queue.stop("cancel", "batch", "gone")
        assert len(await queue.drain()) == 300
        queue.producer.enqueue_many(of("w/p/a", 300), batch_id="w")
        await queue.has(10)
        assert len(await queue.take()) == 13


class TestRoom:
    async def test_a_thousand_assistants_of_one_lane_share_its_room(self, queue: Queue) -> None:
        lane = await queue.knows("w/p/a0", rpm=300)
        await queue.redis.hset(names.ROUTES, mapping={a_job(assistant=f"w/p/a{n}").route: lane for n in range(1000)})
        queue.producer.enqueue_many([a_job(assistant=f"w/p/a{number}") for number in range(1000)], batch_id="b")
        await queue.has(5000)
        let_out = len(await queue.take())
        assert 1 <= let_out <= 2 * 300 / 60 + 2  # what a second's burst and the horizon hold
        assert await queue.take() == []

    async def test_a_thousand_assistants_whose_lane_nobody_knows_do_not_fill_the_workers_for_long(
        self, queue: Queue
    ) -> None:
        lane = Lane(workspace="w", provider="host", model="m")
        queue.producer.enqueue_many([a_job(assistant=f"w/p/a{n % 100}") for n in range(1000)], batch_id="b")
        await queue.knows("w/p/a0", rpm=60)
        await queue.has(200)
        went_on = 0
        for _ in range(20):
            for held in await queue.claim():
                if await queue.jobs.meets(held, lane):
                    went_on += 1
                else:
                    await queue.jobs.snooze(held, delay_s=0, burns_attempt=False, hold_lane=False)
        assert await queue.redis.hlen(names.ROUTES) == 100
        assert 1 <= went_on <= 4
        assert sum((await queue.places()).values()) <= 4

    async def test_a_lane_without_room_is_parked_until_it_has_some(self, queue: Queue) -> None:
        lane = await queue.knows("w/p/a", most=2)
        queue.producer.enqueue_many(of("w/p/a", 10), batch_id="b")
        await queue.has(100)
        assert len(await queue.take()) == 2
        looked = await queue.look()
        assert looked.hints == []
        assert looked.look_again_s is not None
        assert 0.5 < looked.look_again_s <= 1
        await queue.redis.delete(names.entering(lane))
        assert await queue.take() == []  # parked: nobody looks
        await let_parked_lanes_open(queue.redis)
        assert len(await queue.take()) == 2

    async def test_a_parked_lane_opens_early_when_somebody_says_so(self, queue: Queue) -> None:
        lane = await queue.knows("w/p/a", most=1)
        queue.producer.enqueue_many(of("w/p/a", 3), batch_id="b")
        await queue.has(100)
        await queue.take()
        await queue.take()
        await queue.redis.delete(names.entering(lane))
        assert await queue.redis.zadd(names.PARKED, {lane: 0}, xx=True, ch=True) == 1
        assert await queue.take() == ["b.1"]

    async def test_parked_lanes_cost_a_look_nothing_however_many_they_are(self, queue: Queue) -> None:
        async def calls_of_a_look(parked: int) -> int:
            await queue.redis.flushall()
            jobs = [a_job(assistant=f"w/p/a{number}") for number in range(parked)]
            queue.producer.enqueue_many(jobs, batch_id=f"b{parked}")
            await queue.has(100)
            await queue.redis.zadd(names.PARKED, {f"?{job.route}": 9e15 for job in jobs})
            await queue.redis.delete(names.workspace_lanes("w", "B"))
            assert await queue.take() == []  # the workspace leaves the ring
            await queue.redis.config_resetstat()
            assert await queue.take() == []
            stats = await queue.redis.info("commandstats")
            return sum(each["calls"] for each in stats.values())

        assert await calls_of_a_look(10) == await calls_of_a_look(10_000) <= 20

    async def test_a_lane_before_a_wall_is_tried_by_one_job_at_a_time_and_not_in_a_hot_loop(self, queue: Queue) -> None:
        lane = await queue.knows("w/p/a")
        fault = LaneFault(workspace="w", code=Code.KEY_REFUSED, reason="no", since_ms=1, count=1)
        await queue.redis.hset(names.FAULTS, lane, fault.model_dump_json())
        queue.producer.enqueue_many(of("w/p/a", 10), batch_id="b")
        await queue.has(100)
        assert await queue.take() == ["b.0"]
        looked = await queue.look()
        assert looked.hints == []
        assert looked.look_again_s is not None
        assert 0.05 < looked.look_again_s <= 0.1
        # It asked the limiter, and calls.
        await queue.redis.zrem(names.entering(lane), "b.0")
        await queue.redis.hset(f"aq:held:{lane}", "b.0", "sent 1 0 0 0 p")
        await let_parked_lanes_open(queue.redis)
        assert await queue.take() == []
        await queue.redis.delete(f"aq:held:{lane}")
        await let_parked_lanes_open(queue.redis)
        assert await queue.take() == ["b.1"]

    async def test_jobs_that_end_without_asking_the_limiter_make_room_at_once(self, queue: Queue) -> None:
        await queue.knows("w/p/a", rpm=60)
        queue.producer.enqueue_many(of("w/p/a", 200), batch_id="b")
        await queue.has(100)
        ended = 0
        for _ in range(400):
            for held in await queue.claim():
                await queue.finish(held)
                ended += 1
        assert ended == 200

    async def test_what_entered_and_never_asked_is_given_up_even_after_the_clock_was_set_back(
        self, queue: Queue
    ) -> None:
        lane = await queue.knows("w/p/a", most=2)
        queue.producer.enqueue_many(of("w/p/a", 6), batch_id="b")
        await queue.has(100)
        await queue.take()
        for long_ago in ({"b.0": 1, "b.1": 1}, {"b.2": 9e15, "b.3": 9e15}):
            await queue.redis.zadd(names.entering(lane), long_ago)
            await let_parked_lanes_open(queue.redis)
            assert len(await queue.take()) == 2


class TestRoutes:
    async def test_the_lines_of_a_route_move_to_the_lane_that_it_turns_out_to_meet(self, queue: Queue) -> None:
        queue.producer.enqueue_many(of("w/p/a", 100), batch_id="b")
        await queue.has(500)
        held = await queue.claim()
        assert len(held) == 64
        assert await queue.jobs.meets(held[0], Lane("w", "host", "m1"))
        (lane,) = queue.producer.lanes.all()
        assert (lane.name, lane.waiting, lane.entering) == ("w/host/m1", 36, 1)

    async def test_they_move_on_when_the_assistant_gets_another_model_and_those_of_others_stay(
        self, queue: Queue
    ) -> None:
        await queue.knows("w/p/a", model="m1")
        await queue.knows("w/p/other", model="m1")
        queue.producer.enqueue_many(of("w/p/a", 5), batch_id="a")
        queue.producer.enqueue_many(of("w/p/other", 5), batch_id="o")
        await queue.has(500)
        (held,) = await queue.claim(1)
        assert await queue.jobs.meets(held, Lane("w", "host", "m2"))
        assert {lane.name: lane.waiting for lane in queue.producer.lanes.all()} == {"w/host/m1": 5, "w/host/m2": 4}
        assert len(await queue.take()) == 9

    async def test_the_lines_of_a_paused_batch_move_when_it_is_resumed(self, queue: Queue) -> None:
        queue.producer.enqueue_many(of("w/p/a", 5), batch_id="b")
        await queue.has(500)
        (held,) = await queue.claim(1)
        queue.stop("pause", "batch", "b")
        assert await queue.jobs.meets(held, Lane("w", "host", "m1"))
        queue.stop("resume", "batch", "b")
        assert [(lane.name, lane.waiting) for lane in queue.producer.lanes.all()] == [("w/host/m1", 4)]
        assert len(await queue.take()) == 4

    async def test_a_job_that_meets_a_paused_lane_goes_back_to_wait_there(self, queue: Queue) -> None:
        queue.stop("pause", "lane", "w/host/m1")
        queue.producer.enqueue_many(of("w/p/a", 5), batch_id="b")
        await queue.has(500)
        for held in await queue.claim():
            if not await queue.jobs.meets(held, Lane("w", "host", "m1")):
                await queue.jobs.snooze(held, delay_s=0, burns_attempt=False, hold_lane=False)
        # The route was told by the first; those that were claimed before know it too late.
        assert [(lane.name, lane.waiting) for lane in queue.producer.lanes.all()] == [("w/host/m1", 5)]
        assert await queue.take() == []
        queue.stop("resume", "lane", "w/host/m1")
        assert len(await queue.take()) == 5


class TestStopping:
    async def test_a_paused_lane_lets_nothing_out_until_it_is_resumed(self, queue: Queue) -> None:
        lane = await queue.knows("w/p/a")
        queue.producer.enqueue_many(of("w/p/a", 5), batch_id="b")
        assert queue.stop("pause", "lane", lane) == 5
        await queue.has(100)
        queue.producer.enqueue(a_job("later", assistant="w/p/a"))
        assert await queue.take() == []
        (status,) = queue.producer.lanes.all()
        assert (status.name, status.waiting, status.paused) == (lane, 6, True)
        assert queue.stop("resume", "lane", lane) == 6
        assert len(await queue.take()) == 6

    async def test_a_paused_batch_lets_nothing_out_and_others_go_on(self, queue: Queue) -> None:
        await queue.knows("w/p/a")
        queue.producer.enqueue_many(of("w/p/a", 5), batch_id="b")
        queue.producer.enqueue_many(of("w/p/a", 5), batch_id="other")
        assert queue.stop("pause", "batch", "b") == 5
        await queue.has(100)
        assert await queue.take() == [f"other.{row}" for row in range(5)]
        queue.stop("resume", "batch", "b")
        assert await queue.take() == [f"b.{row}" for row in range(5)]

    async def test_rows_that_are_enqueued_to_a_paused_batch_wait(self, queue: Queue) -> None:
        def jobs() -> Any:
            yield from of("w/p/a", CHUNK_JOBS)
            queue.stop("pause", "batch", "b")
            yield from of("w/p/a", 3)
            yield from of("w/p/new", 3)

        queue.producer.enqueue_many(jobs(), batch_id="b")
        await queue.has(2 * CHUNK_JOBS)
        assert await queue.take() == []
        status = queue.producer.batch("b").status()
        assert status is not None
        assert status.paused
        queue.stop("resume", "batch", "b")
        assert {"b.0", f"b.{CHUNK_JOBS + 3}"} <= set(await queue.take())

    @pytest.mark.parametrize("kind", ["batch", "lane"])
    async def test_released_jobs_of_what_is_paused_go_back_when_they_are_claimed(
        self, queue: Queue, kind: Kind
    ) -> None:
        lane = await queue.knows("w/p/a")
        queue.producer.enqueue_many(of("w/p/a", 3), batch_id="b")
        await queue.has(100)
        hints = (await queue.look()).hints
        name = "b" if kind == "batch" else lane
        queue.stop("pause", kind, name)
        assert [await queue.jobs.claim(hint) for hint in hints] == [None] * 3
        assert await queue.places() == {}
        assert await queue.take() == []
        queue.stop("resume", kind, name)
        assert sorted(await queue.take()) == ["b.0", "b.1", "b.2"]

    async def test_a_job_that_runs_in_what_is_paused_goes_on(self, queue: Queue) -> None:
        lane = await queue.knows("w/p/a")
        queue.producer.enqueue_many(of("w/p/a", 1), batch_id="b")
        await queue.has(100)
        (held,) = await queue.claim()
        queue.stop("pause", "lane", lane)
        queue.stop("pause", "batch", "b")
        assert await queue.jobs.append(held, reply()) is None
        await queue.finish(held)
        assert (await queue.jobs.ending_batches()).keys() == {"b"}

    async def test_a_cancelled_batch_ends_each_of_its_jobs_as_cancelled_wherever_it_is(self, queue: Queue) -> None:
        await queue.knows("w/p/a")
        jobs = [*of("w/p/a", 4), *of("w/p/a", 2, thread_id="t"), *of("w/p/a", 2)]
        queue.producer.enqueue_many(jobs, batch_id="b")
        await queue.has(4)
        snoozed, ran, *_ = held = await queue.claim()
        assert len(held) == 5
        await queue.jobs.snooze(snoozed, delay_s=3600, burns_attempt=False, hold_lane=False)
        (hint,) = (await queue.look()).hints
        assert queue.stop("cancel", "batch", "b") == 2

        assert await queue.jobs.append(ran, reply()) is CalledOff.CANCELLED  # its reply is kept, and it is told
        claim = await queue.jobs.claim(hint)
        assert claim is not None
        assert claim.called_off is CalledOff.CANCELLED
        for each in (*held[1:], claim):
            await queue.jobs.finish(each, a_result(each.record, status=Status.CANCELLED))
        ended = await queue.drain_all()
        await queue.jobs.sweep()
        ended += await queue.drain_all()
        assert len(ended) == 3
        fields = (await queue.jobs.ending_batches())["b"]
        assert (fields["total"], fields["finished"], fields["cancelled"]) == ("8", "8", "8")
        assert fields["requests"] == "8"  # a_result counts one each
        assert await queue.places() == {}

    @pytest.mark.parametrize(
        ("marks", "ends_as", "batch_ends_as"),
        [
            ({"cancelled_ms": 5, "expired_ms": 6, "over_budget_ms": 7}, CalledOff.CANCELLED, BatchState.CANCELLED),
            ({"cancelled_ms": 6, "expired_ms": 5}, CalledOff.EXPIRED, BatchState.EXPIRED),
            ({"expired_ms": 6, "over_budget_ms": 5}, CalledOff.OVER_BUDGET, BatchState.COMPLETED),
        ],
    )
    async def test_a_job_and_its_batch_end_by_what_called_the_batch_off_first(
        self, queue: Queue, marks: dict[str, int], ends_as: CalledOff, batch_ends_as: BatchState
    ) -> None:
        queue.producer.enqueue_many(of("w/p/a", 2), batch_id="b")
        await queue.has(2)
        (ran,) = await queue.claim(1)
        for mark, ms in marks.items():
            await queue.redis.hset(names.batch("b"), mark, str(ms))
        (claimed_late,) = await queue.claim(1)
        # One that runs under a cap asks for room before its next call.
        ends_running_as = None if ends_as is CalledOff.OVER_BUDGET else ends_as
        assert await queue.jobs.append(ran, reply()) is ends_running_as
        assert await queue.jobs.called_off(ran) is ends_running_as
        assert claimed_late.called_off is ends_as
        assert end_state({mark: str(ms) for mark, ms in marks.items()}) is batch_ends_as

    @pytest.mark.parametrize("verb", ["cancel", "expire"])
    async def test_jobs_that_their_thread_blocks_end_at_once_when_their_batch_is_called_off(
        self, queue: Queue, verb: str
    ) -> None:
        queue.producer.enqueue(a_job("first", assistant="w/p/a", thread_id="t"))
        queue.producer.enqueue_many(of("w/p/a", 3, thread_id="t"), batch_id="b")
        queue.producer.enqueue(a_job("last", assistant="w/p/a", thread_id="t"))
        await queue.has(10)
        (first,) = await queue.claim()
        if verb == "cancel":
            assert queue.stop("cancel", "batch", "b") == 3
        else:
            await queue.expire("b")
        assert sorted(await queue.drain_all()) == ["b.0", "b.1", "b.2"]
        assert await queue.take() == []
        await queue.finish(first)
        assert await queue.serve(1) == ["last"]
        assert await queue.redis.keys("aq:thread:*") == []

    async def test_a_batch_expires_when_its_time_is_over_wherever_its_jobs_are(self, queue: Queue) -> None:
        jobs, hour = of("w/p/a", 4), timedelta(hours=1)
        queue.producer.enqueue_many(jobs, batch_id="b", expires_at=datetime.now(UTC) - hour)
        queue.producer.enqueue_many(jobs, batch_id="later", expires_at=datetime.now(UTC) + hour)
        await queue.has(100)
        held = await queue.claim(4)
        ran, snoozed = [each for each in held if each.batch_id == "b"]
        await queue.jobs.snooze(snoozed, delay_s=3600, burns_attempt=False, hold_lane=False)
        assert await queue.jobs.expire_batches() == 1
        assert await queue.jobs.expire_batches() == 0
        (told,) = [status for status in queue.producer.open_batches() if status.batch_id == "b"]
        assert (told.state, told.expiring, told.cancelling) == (BatchState.RUNNING, True, False)
        assert await queue.jobs.append(ran, reply()) is CalledOff.EXPIRED
        await queue.finish(ran)  # its answer came in time
        queue.stop("cancel", "batch", "b")  # too late to say otherwise
        await queue.jobs.sweep()
        for each in [*held, *await queue.claim()]:
            if each.batch_id == "later":
                await queue.finish(each)
        await queue.drain_all()
        fields = await queue.jobs.ending_batches()
        assert end_state(fields["b"]) is BatchState.EXPIRED
        assert (fields["b"]["finished"], fields["b"]["expired"], fields["b"]["succeeded"]) == ("4", "3", "1")
        assert end_state(fields["later"]) is BatchState.COMPLETED
        assert await queue.jobs.end_batch("later", state="completed")
        assert not await queue.redis.exists(names.EXPIRING)

    async def test_a_batch_that_has_spent_its_cap_while_its_producer_died_ends_when_its_time_is_over(
        self, queue: Queue
    ) -> None:
        def dies() -> Iterator[InvokeJob]:
            yield from of("w/p/a", CHUNK_JOBS)
            raise OSError("the producer dies")

        with pytest.raises(OSError, match="dies"):
            queue.producer.enqueue_many(dies(), batch_id="b", expires_at=datetime.now(UTC) - timedelta(hours=1))
        queue.producer.enqueue_many(of("w/p/a", 1), batch_id="other")
        await queue.redis.hset(names.batch("b"), "over_budget_ms", 1)
        assert await queue.jobs.expire_batches() == 1
        await queue.drain_all()
        fields = await queue.jobs.ending_batches()
        assert fields["b"]["total"] == fields["b"]["finished"] == str(CHUNK_JOBS)

    async def test_a_batch_whose_jobs_all_ended_in_time_does_not_expire(self, queue: Queue) -> None:
        queue.producer.enqueue_many(of("w/p/a", 1), batch_id="b", expires_at=datetime.now(UTC) - timedelta(hours=1))
        await queue.has(10)
        await queue.finish((await queue.claim())[0])
        assert await queue.jobs.expire_batches() == 0
        assert end_state((await queue.jobs.ending_batches())["b"]) is BatchState.COMPLETED

    async def test_the_time_that_a_batch_was_given_first_stands_when_it_is_sent_again(self, queue: Queue) -> None:
        first = datetime.now(UTC) + timedelta(hours=1)
        for expires_at in (first, first + timedelta(hours=1), first - timedelta(hours=2), None):
            queue.producer.enqueue_many(of("w/p/a", 2), batch_id="b", expires_at=expires_at)
        assert await queue.jobs.expire_batches() == 0
        status = queue.producer.batch("b").status()
        assert status is not None
        assert status.expires_ms == int(first.timestamp() * 1000)

    @pytest.mark.parametrize(("verb", "why"), [("cancel", "was cancelled"), ("expire", "has expired")])
    async def test_a_batch_that_is_called_off_takes_no_more_rows_and_says_so(
        self, queue: Queue, verb: str, why: str
    ) -> None:
        def jobs() -> Any:
            yield from of("w/p/a", CHUNK_JOBS)
            while (status := queue.producer.batch("b").status()) is None or status.enqueued < CHUNK_JOBS:
                time.sleep(0.01)  # the chunk is sent by a thread of its own
            if verb == "cancel":
                queue.stop("cancel", "batch", "b")
            else:
                asyncio.run_coroutine_threadsafe(queue.expire("b"), loop).result()
            yield from of("w/p/a", 3)

        loop = asyncio.get_running_loop()
        with pytest.raises(ProducerError, match=f"batch b {why}; send more as another batch"):
            await asyncio.to_thread(queue.producer.enqueue_many, jobs(), batch_id="b")
        assert len(await queue.drain_all()) == CHUNK_JOBS
        assert (await queue.jobs.ending_batches())["b"]["finished"] == str(CHUNK_JOBS)

    async def test_a_batch_that_is_cancelled_while_it_is_paused_ends(self, queue: Queue) -> None:
        queue.producer.enqueue_many(of("w/p/a", 3), batch_id="b")
        queue.stop("pause", "batch", "b")
        assert queue.stop("cancel", "batch", "b") == 3
        with pytest.raises(ProducerError, match="has ended"):
            queue.stop("pause", "batch", "b")  # too late
        assert len(await queue.drain_all()) == 3
        assert set(await queue.jobs.ending_batches()) == {"b"}

    async def test_cancelling_a_lane_ends_the_jobs_of_its_paused_batches_too(self, queue: Queue) -> None:
        lane = await queue.knows("w/p/a")
        queue.producer.enqueue_many(of("w/p/a", 3), batch_id="b")
        queue.stop("pause", "batch", "b")
        (shown,) = [each for each in queue.producer.lanes.all() if each.name == lane]
        assert shown.waiting == 3
        assert queue.stop("cancel", "lane", lane) == 3
        assert len(await queue.drain_all()) == 3

    async def test_a_batch_that_has_ended_or_never_was_cannot_be_stopped(self, queue: Queue) -> None:
        queue.producer.enqueue_many(of("w/p/a", 1), batch_id="b")
        await queue.has(10)
        await queue.finish((await queue.claim())[0])
        verbs: tuple[Verb, ...] = ("pause", "resume", "cancel")
        for verb in verbs:
            for name in ("b", "nobody"):
                with pytest.raises(ProducerError, match=f"batch {name} has ended, or is not known"):
                    queue.stop(verb, "batch", name)
        fields = (await queue.jobs.ending_batches())["b"]
        assert not {"cancelled_ms", "paused_ms"} & fields.keys()
        assert not await queue.redis.exists(names.batch("nobody"))

    async def test_what_waits_under_an_unknown_lane_cannot_be_paused_by_that_name(self, queue: Queue) -> None:
        queue.producer.enqueue_many(of("w/p/a", 1), batch_id="b")
        (lane,) = queue.producer.lanes.all()
        with pytest.raises(ProducerError, match="lane is not known yet; pause their batch"):
            queue.stop("pause", "lane", lane.name)

    async def test_a_job_whose_drainer_died_is_drained_again(self, queue: Queue) -> None:
        lane = await queue.knows("w/p/a")
        queue.producer.enqueue_many(of("w/p/a", 5), batch_id="b")
        queue.stop("pause", "lane", lane)
        queue.stop("cancel", "lane", lane)
        await queue.drain()
        assert await queue.jobs.drain(10) == []
        await queue.jobs.sweep()
        await let_leases_lapse(queue.redis)
        assert (await queue.jobs.sweep()).recovered == 5
        assert sorted(await queue.drain_all()) == [f"b.{row}" for row in range(5)]
        assert not await queue.redis.exists(names.DRAINED)

    async def test_cancelling_a_lane_ends_what_was_enqueued_before_and_leaves_what_comes_later(
        self, queue: Queue
    ) -> None:
        lane = await queue.knows("w/p/a")
        await queue.knows("w/p/other", model="m2")
        queue.producer.enqueue_many([*of("w/p/a", 3), *of("w/p/other", 1)], batch_id="b")
        queue.producer.enqueue(a_job("first", assistant="w/p/a", thread_id="t"))
        queue.producer.enqueue(a_job("blocked", assistant="w/p/a", thread_id="t"))
        await queue.has(1)
        (held,) = await queue.claim(1)
        assert held.id == "first"
        await queue.next_ms()
        assert queue.stop("cancel", "lane", lane) == 3
        queue.producer.enqueue(a_job("later", assistant="w/p/a"))
        assert sorted(await queue.drain_all()) == ["b.0", "b.1", "b.2"]
        assert await queue.jobs.append(held, reply()) is None
        await queue.finish(held)
        assert await queue.drain_all() == ["blocked"]
        assert await queue.serve(5) == ["later", "b.3"]

    async def test_a_job_that_comes_back_to_a_cancelled_lane_ends_and_nobody_ends_in_its_place(
        self, queue: Queue
    ) -> None:
        lane = await queue.knows("w/p/a")
        queue.producer.enqueue_many(of("w/p/a", 3), batch_id="b")
        await queue.has(1)
        (held,) = await queue.claim(1)
        await queue.next_ms()
        queue.stop("cancel", "lane", lane)
        queue.producer.enqueue(a_job("later", assistant="w/p/a"))
        await queue.jobs.snooze(held, delay_s=0, burns_attempt=False, hold_lane=False)
        assert sorted(await queue.drain_all()) == ["b.0", "b.1", "b.2"]
        assert await queue.take() == ["later"]

    async def test_a_cancelled_job_that_would_wait_long_for_its_provider_ends_soon(self, queue: Queue) -> None:
        queue.producer.enqueue_many(of("w/p/a", 1), batch_id="b")
        await queue.has(10)
        (held,) = await queue.claim()
        queue.stop("cancel", "batch", "b")
        await queue.jobs.snooze(held, delay_s=3600, burns_attempt=True, hold_lane=False)
        due_ms = await queue.redis.zscore(names.SNOOZED, held.id)
        assert due_ms is not None
        assert due_ms / 1000 <= await queue.now() + 6

    async def test_a_cancelled_job_that_waits_for_sql_does_not_spin(self, queue: Queue) -> None:
        queue.producer.enqueue_many(of("w/p/a", 1), batch_id="b")
        queue.stop("cancel", "batch", "b")
        (held,) = await queue.drain()
        await queue.jobs.snooze(held, delay_s=5, burns_attempt=False, hold_lane=False)
        assert await queue.jobs.drain(10) == []
        await let_snoozes_end(queue.redis)
        await queue.jobs.sweep()
        assert await queue.drain_all() == ["b.0"]


@pytest.mark.parametrize("state", [BatchState.COMPLETED, BatchState.CANCELLED, BatchState.EXPIRED])
async def test_a_batch_ends_once_in_sql_with_one_webhook_that_says_how(
    queue: Queue, database_url: str, state: BatchState
) -> None:
    engine = engine_for(database_url)
    ensure_tables(engine)
    store = SqlStore(engine)
    queue.producer.enqueue_many(of("w/p/a", 3), batch_id="b", webhook="https://example.org/hook")
    if state is BatchState.CANCELLED:
        queue.stop("cancel", "batch", "b")
    elif state is BatchState.EXPIRED:
        await queue.expire("b")
    else:
        await queue.has(10)
        await queue.serve(3)
    await queue.drain_all()
    seen: list[object] = []
    sweepers = [
        Sweeper(
            queue=queue.jobs,
            store=store,
            free_lost_calls=_none_free,
            send_due_webhooks=_nothing,
            wake=lambda: None,
            events=Events(seen.append),
        )
        for _ in range(3)
    ]
    for _ in range(2):
        await asyncio.gather(*(sweeper._end_batches() for sweeper in sweepers))
    assert [event.state for event in seen if isinstance(event, BatchEnded)] == [state.value]
    with Session(engine) as session:
        assert [batch.state for batch in session.exec(select(Batch))] == [state.value]
        assert [row.event_type for row in session.exec(select(Delivery))] == [f"batch.{state.value}"]
    store.close()


async def test_a_batch_that_sql_refuses_keeps_no_other_from_its_end_and_no_webhook_from_its_way(
    queue: Queue, database_url: str
) -> None:
    engine = engine_for(database_url)
    ensure_tables(engine)
    store = SqlStore(engine)
    others = [f"b{number}" for number in range(5)]
    for batch_id in ["refused", *others]:
        queue.producer.enqueue_many(of("w/p/a", 1), batch_id=batch_id)
        queue.stop("cancel", "batch", batch_id)
    await queue.drain_all()
    # No database has an integer of this length.
    await queue.redis.hset(names.batch("refused"), "prompt_tokens", str(10**30))
    seen: list[object] = []
    # Each waits for the other's second time.
    refused_again, sent_again = asyncio.Event(), asyncio.Event()
    sent = 0

    def on_event(event: object) -> None:
        seen.append(event)
        if sum(isinstance(each, ServiceFault) for each in seen) == 2:
            refused_again.set()

    async def send_due_webhooks() -> None:
        nonlocal sent
        sent += 1
        if sent == 2:
            sent_again.set()

    sweeper = Sweeper(
        queue=queue.jobs,
        store=store,
        free_lost_calls=_none_free,
        send_due_webhooks=send_due_webhooks,
        wake=lambda: None,
        events=Events(on_event),
    )
    sweeping = asyncio.create_task(sweeper.run_forever())
    async with asyncio.timeout(30):
        await refused_again.wait()
        await sent_again.wait()
    sweeping.cancel()
    await asyncio.wait([sweeping])
    assert sorted(event.batch_id for event in seen if isinstance(event, BatchEnded)) == others
    with Session(engine) as session:
        assert sorted(session.exec(select(Batch.id))) == others
    faults = [event for event in seen if isinstance(event, ServiceFault)]
    assert {fault.part for fault in faults} == {"sweeper"}
    assert all(fault.error.startswith("end of batch 'refused': ") for fault in faults)
    assert list(await queue.jobs.ending_batches()) == ["refused"]
    store.close()


async def test_batches_that_look_like_a_database_that_is_away_come_after_those_that_were_never_refused(
    queue: Queue, sqlite_url: str
) -> None:
    engine = engine_for(sqlite_url)
    ensure_tables(engine)
    with engine.begin() as connection:
        # What a trigger raises so is an OperationalError, as when the database is away.
        connection.exec_driver_sql(
            "CREATE TRIGGER refuse BEFORE INSERT ON batches WHEN NEW.label = 'refused' "
            "BEGIN SELECT json('no json'); END"
        )
    store = SqlStore(engine)
    for number in range(8):
        label = "refused" if number < 4 else "taken"
        queue.producer.enqueue_many(of("w/p/a", 1), batch_id=f"{label}{number}", label=label)
        queue.stop("cancel", "batch", f"{label}{number}")
    await queue.drain_all()
    seen: list[object] = []
    sweeper = Sweeper(
        queue=queue.jobs,
        store=store,
        free_lost_calls=_none_free,
        send_due_webhooks=_nothing,
        wake=lambda: None,
        events=Events(seen.append),
    )
    for _ in range(8):
        await sweeper._end_batches()
    assert {event.batch_id for event in seen if isinstance(event, BatchEnded)} == {f"taken{n}" for n in range(4, 8)}
    assert {event.part for event in seen if isinstance(event, ServiceFault)} == {"sql"}
    store.close()


async def _nothing() -> None:
    return None


async def _none_free() -> int:
    return 0


async def test_ten_thousand_lanes_of_one_job_each_are_all_served_and_leave_nothing_behind(queue: Queue) -> None:
    await queue.redis.config_set("appendfsync", "everysec")
    jobs = [a_job(assistant=f"w{number % 100}/p/a{number}") for number in range(10_000)]
    with queue.producer._redis.pipeline(transaction=False) as pipe:
        for number, job in enumerate(jobs):
            record = JobRecord(id=f"j{number}", job=job)
            raw = record.model_dump_json(exclude_defaults=True)
            args = ["", record.id, raw, "I", job.route, job.workspace, "", ""]
            queue.producer._enqueue_script(keys=[], args=args, client=pipe)
        pipe.execute()
    await queue.has(20_000)
    seen: set[str] = set()
    looks = 0
    while len(seen) < len(jobs):
        looks += 1
        assert looks <= 60, "looks that let nothing out"
        for held in await queue.claim(256):
            seen.add(held.id)
            await queue.finish(held)
    idle = [await queue.look() for _ in range(60)]
    assert all(not look.hints for look in idle)
    assert idle[-1].look_again_s is None
    await queue.jobs.sweep()
    left = {text(key) for key in await queue.redis.keys()}
    lasting = {key for key in left if await queue.redis.ttl(key) < 0}
    assert lasting == {names.SWEPT, names.WORKERS, f"{names.RING}:now", f"{names.PREFIX}:turn"}


async def test_ten_thousand_lanes_that_a_pause_has_emptied_hold_no_look_up_for_long(queue: Queue) -> None:
    jobs = [a_job(assistant=f"w/p/a{number}") for number in range(10_000)]
    queue.producer.enqueue_many(jobs, batch_id="b")
    queue.stop("pause", "batch", "b")
    await queue.has(100)
    looks = 0
    while (looked := await queue.look()).look_again_s == 0:
        assert looked.hints == []
        looks += 1
    assert 2 <= looks <= 30
    assert not await queue.redis.exists(names.RING)


class TestClock:
    async def test_nothing_hangs_or_is_lost_when_the_servers_clock_is_set_back(self, queue: Queue) -> None:
        clock = TestedClock(queue)
        await clock.set(2_000_000_000)
        lane = await queue.knows("w/p/a")
        queue.producer.enqueue_many(of("w/p/a", 6), batch_id="b")
        await queue.has(2)
        running, snoozed, lost = await queue.claim()
        await queue.jobs.sweep()
        await queue.jobs.snooze(snoozed, delay_s=30, burns_attempt=False, hold_lane=False)
        await queue.redis.zadd(names.PARKED, {lane: 2_000_000_030_000})

        await clock.set(1_999_990_000)
        await queue.has(2)
        await queue.jobs.sweep()
        assert await queue.jobs.renew([running.hint]) == set()
        for passed_s in range(2, 40, 2):
            await clock.set(1_999_990_000 + passed_s)
            await queue.has(2)
            await queue.jobs.sweep()
            assert await queue.jobs.renew([running.hint]) == set()
        ids = [*await queue.serve(1), *await queue.serve(9)]
        assert sorted(ids) == sorted({snoozed.id, lost.id, "b.3", "b.4", "b.5"})
        await queue.finish(running)
        assert set(await queue.jobs.ending_batches()) == {"b"}

    async def test_a_job_that_was_claimed_just_after_the_clock_was_set_back_keeps_its_lease(self, queue: Queue) -> None:
        clock = TestedClock(queue)
        await clock.set(2_000_000_000)
        await queue.jobs.sweep()
        await clock.set(1_999_990_000)
        queue.producer.enqueue(a_job("j"))
        await queue.has(2)
        (held,) = await queue.claim()
        assert (await queue.jobs.sweep()).recovered == 0
        await queue.finish(held)

    async def test_a_dead_workers_places_are_not_counted_until_the_clock_is_where_it_was(self, queue: Queue) -> None:
        clock = TestedClock(queue)
        await clock.set(1_999_990_000)
        await queue.redis.hset(names.WORKERS, "dead", "50 2000000008000")
        await queue.has(4)
        queue.producer.enqueue_many(of("w/p/a", 60), batch_id="b")
        assert len(await queue.take()) == 5


class TestedClock:
    """The server's clock as the scripts see it."""

    __test__ = False

    def __init__(self, queue: Queue) -> None:
        self._redis = queue.redis
        scripts: list[Any] = [*queue.jobs._scripts.values(), queue.releases._script, queue.producer._enqueue_script]
        for script in scripts:
            script.script = str(script.script).replace("redis.call('TIME')", "redis.call('LRANGE', 'the-time', 0, 1)")
            script.sha = hashlib.sha1(script.script.encode(), usedforsecurity=False).hexdigest()
        queue.clock = self

    async def set(self, seconds: int) -> None:
        await self._redis.delete("the-time")
        await self._redis.rpush("the-time", seconds, 0)

    async def now(self) -> int:
        return int((await self._redis.lrange("the-time", 0, 0))[0])
