"""Whatever happens to jobs, none is lost, doubled or out of its thread's order, and what may run is let out."""

from __future__ import annotations

import asyncio
import itertools
import json
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
import redis as sync_redis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from producer import Producer
from producer.lanes import Kind, Lanes, Verb
from schemas import ProducerError, Status, names
from schemas.lane import Lane
from tests.given import a_job, a_result, let_leases_lapse, let_parked_lanes_open, let_snoozes_end, state, text
from worker.admission.releases import Releases
from worker.queue.queue import CalledOff, Claimed, Hint, JobQueue

WORKSPACES, ASSISTANTS, MODELS, BATCHES, THREADS = ("a", "b"), ("x", "y"), ("m1", "m2"), ("", "b1", "b2"), ("", "t")
CAPACITY = 40
verbs = st.sampled_from(["pause", "resume", "cancel"])
batch_verbs = st.sampled_from(["pause", "resume", "cancel", "expire"])
numbers = st.integers(0, 30)
STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("enqueue"),
            st.sampled_from(WORKSPACES),
            st.sampled_from(ASSISTANTS),
            st.sampled_from(BATCHES),
            st.sampled_from(THREADS),
        ),
        st.tuples(st.just("release"), st.integers(1, 8)),
        st.tuples(st.just("work"), st.integers(1, 8)),
        st.tuples(st.just("work"), st.integers(1, 8)),
        st.tuples(st.just("claim"), numbers),
        st.tuples(st.just("finish"), numbers),
        st.tuples(st.just("snooze"), numbers, st.sampled_from([0, 3600]), st.booleans()),
        st.tuples(st.just("give back"), numbers),
        st.tuples(st.just("meet"), numbers, st.sampled_from(MODELS)),
        st.tuples(st.just("drain"), st.integers(1, 5)),
        st.tuples(st.just("cancel"), numbers),
        st.tuples(st.just("workers die")),
        st.tuples(st.just("snoozes end")),
        st.tuples(st.just("batch"), batch_verbs, st.sampled_from(WORKSPACES), st.sampled_from(BATCHES[1:])),
        st.tuples(st.just("lane"), verbs, st.sampled_from(WORKSPACES), st.sampled_from(MODELS)),
    ),
    min_size=30,
    max_size=60,
)


PLACES_OF: dict[str, list[list[str]]] = {
    "waiting": [["line"], ["drain"]],
    "released": [[names.LEASES]],
    "running": [[names.LEASES]],
    "snoozed": [[names.SNOOZED]],
    "blocked": [[]],
}


@dataclass
class Played:
    """The queue, and what must be true of it."""

    redis: Redis
    producer: Producer
    hints: list[Hint] = field(default_factory=list)
    held: list[Claimed] = field(default_factory=list)
    enqueued: list[str] = field(default_factory=list)
    order: dict[str, list[str]] = field(default_factory=dict)  # thread -> its jobs that have not ended
    ended: dict[str, bool] = field(default_factory=dict)  # id -> whether it was called off
    must_end: set[str] = field(default_factory=set)  # they were called off while they waited
    may_end: set[str] = field(default_factory=set)
    expired: set[str] = field(default_factory=set)  # batches whose time was over before anybody cancelled them
    began: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.jobs = JobQueue(self.redis)
        self.releases = Releases(self.redis)
        self._numbers = itertools.count()

    async def do(self, verb: str, *how: Any) -> None:
        """Do one step."""
        await getattr(self, f"do_{verb.replace(' ', '_')}")(*how)

    async def do_enqueue(self, workspace: str, assistant: str, batch: str, thread: str) -> None:
        number = next(self._numbers)
        job = a_job(f"j{number}", assistant=f"{workspace}/p/{assistant}", thread_id=thread or None)
        batch_id = f"{workspace}-{batch}" if batch else ""
        if batch_id and any(await self.redis.hmget(names.batch(batch_id), "cancelled_ms", "expired_ms")):
            return
        if batch_id:
            self.producer._open_batch(batch_id, {"workspace": workspace, "webhook": "", "label": ""})
        args = [batch_id, f"j{number}", "B" if batch else "I", job.route, workspace, thread, number]
        record: dict[str, Any] = {"id": f"j{number}", "job": job.model_dump(exclude_defaults=True, by_alias=True)}
        if batch_id:
            record |= {"batch_id": batch_id, "row": number}
        self.producer._enqueue_script(keys=[], args=[args[0], args[1], json.dumps(record), *args[2:]])
        self.enqueued.append(f"j{number}")
        if thread:
            self.order.setdefault(f"{workspace}:{thread}", []).append(f"j{number}")

    async def do_release(self, limit: int) -> None:
        await self.jobs.heartbeat("w", capacity=CAPACITY, ttl_s=60)
        hints = (await self.releases.release(limit)).hints
        self.hints += hints
        if len(hints) < limit and await self.redis.zcard(names.LEASES) < CAPACITY:
            assert await self.redis.zcard(names.RING) == 0, "something that may run was not let out"

    async def do_work(self, limit: int) -> None:
        await self.do_release(limit)
        for hint in self.hints:
            await self._claim(hint)
        self.hints.clear()

    async def do_claim(self, number: int) -> None:
        if self.hints:
            await self._claim(self.hints.pop(number % len(self.hints)))

    async def _claim(self, hint: Hint) -> None:
        held = await self.jobs.claim(hint)
        if held is None:
            return
        assert held.id not in self.ended, "one that had ended runs"
        if held.id in self.must_end:
            assert held.called_off, "one that was called off while it waited runs"
        if held.called_off:
            assert held.id in self.must_end | self.may_end, "one that nobody called off ends"
            assert held.called_off is CalledOff.CANCELLED or held.batch_id in self.expired
        for waiting in self.order.values():
            assert held.called_off or held.id not in waiting[1:], "out of its thread's order"
        self.began.add(held.id)
        self.held.append(held)

    def _pick(self, number: int) -> Claimed | None:
        return self.held.pop(number % len(self.held)) if self.held else None

    async def do_finish(self, number: int) -> None:
        if held := self._pick(number):
            await self._finish(held)

    async def _finish(self, held: Claimed) -> None:
        status = Status(held.called_off) if held.called_off else Status.SUCCEEDED
        await self.jobs.finish(held, a_result(held.record, status=status))
        assert held.id not in self.ended, "one ended twice"
        self.ended[held.id] = held.called_off is not None
        for waiting in self.order.values():
            if held.id in waiting:
                waiting.remove(held.id)

    async def do_snooze(self, number: int, delay_s: int, hold: bool) -> None:
        if held := self._pick(number):
            await self.jobs.snooze(held, delay_s=delay_s, burns_attempt=False, hold_lane=hold)

    async def do_give_back(self, number: int) -> None:
        if self.hints:
            await self.jobs.give_back(self.hints.pop(number % len(self.hints)))

    async def do_meet(self, number: int, model: str) -> None:
        if self.held:
            held = self.held[number % len(self.held)]
            lane = Lane(held.record.job.workspace, "host", model)
            if not await self.jobs.meets(held, lane):
                self.held.remove(held)
                await self.jobs.snooze(held, delay_s=0, burns_attempt=False, hold_lane=False)

    async def do_drain(self, limit: int) -> None:
        for hint in await self.jobs.drain(limit):
            await self._claim(hint)

    async def do_workers_die(self) -> None:
        await self.jobs.sweep()
        await let_leases_lapse(self.redis)
        await self.jobs.sweep()
        self.held.clear()

    async def do_snoozes_end(self) -> None:
        await let_snoozes_end(self.redis)
        await let_parked_lanes_open(self.redis)
        await self.jobs.sweep()

    async def do_cancel(self, number: int) -> None:
        job_id = self.enqueued[number % len(self.enqueued)]
        assert self.producer.cancel(job_id) == (job_id not in self.ended)
        if job_id not in self.ended:
            running = {held.id for held in self.held}
            (self.may_end if job_id in running else self.must_end).add(job_id)

    async def do_batch(self, verb: Verb | Literal["expire"], workspace: str, batch: str) -> None:
        name = f"{workspace}-{batch}"
        if not await self.redis.hexists(names.batch(name), "created_ms"):
            return
        if verb in {"cancel", "expire"}:
            await self._note_called_off(lambda job: job.get("batch") == name)
        if verb == "expire":
            await self.redis.zadd(names.EXPIRING, {name: 1})
            if await self.jobs.expire_batches():
                self.expired.add(name)
            assert not await self.redis.exists(names.EXPIRING)
        else:
            await self._stop(verb, "batch", name)

    async def do_lane(self, verb: Verb, workspace: str, model: str) -> None:
        lane = Lane(workspace, "host", model).key
        if verb == "cancel":
            routes = {text(k): text(v) for k, v in (await self.redis.hgetall(names.ROUTES)).items()}
            for job_id in self.unfinished():
                if routes.get((await state(self.redis, job_id))["route"]) == lane:
                    self.may_end.add(job_id)
            for priority in "IB":
                for entry in await self.redis.zrange(names.lane_lines(lane, priority), 0, -1):
                    line = text(entry)
                    self.must_end |= {text(each) for each in await self.redis.lrange(names.line(line), 0, -1)}
        await self._stop(verb, "lane", lane)

    async def _note_called_off(self, concerns: Any) -> None:
        running = {held.id for held in self.held}
        for job_id in self.unfinished():
            if concerns(await state(self.redis, job_id)):
                (self.may_end if job_id in running else self.must_end).add(job_id)

    async def _stop(self, verb: Verb, kind: Kind, name: str) -> None:
        over = False
        if kind == "batch":
            fields = ("total", "finished", "cancelled_ms", "expired_ms")
            total, finished, *called_off = await self.redis.hmget(names.batch(name), *fields)
            over = total is not None and int(finished or 0) >= int(total)
            over = over or (verb == "pause" and any(called_off))
        if over:
            with pytest.raises(ProducerError, match="has ended"):
                Lanes(self.producer._redis).stop(verb, kind, name)
        else:
            Lanes(self.producer._redis).stop(verb, kind, name)

    def unfinished(self) -> list[str]:
        return [job_id for job_id in self.enqueued if job_id not in self.ended]

    async def check(self) -> None:
        """Each job that has not ended is in exactly one place, and all registers say the same."""
        keys = sorted([text(key) for key in await self.redis.keys("aq:*")])
        lists = {key: [text(x) for x in await self.redis.lrange(key, 0, -1)] for key in keys if _is_list(key)}
        where: dict[str, list[str]] = {}
        for key, ids in lists.items():
            for job_id in ids:
                where.setdefault(job_id, []).append(key.split(":")[1])
        for key in (names.LEASES, names.SNOOZED):
            for member in await self.redis.zrange(key, 0, -1):
                where.setdefault(text(member), []).append(key)
        places: dict[str, int] = {}
        for job_id in self.unfinished():
            job = await state(self.redis, job_id)
            expected = {
                "running": [names.LEASES],
                "released": [names.LEASES],
                "snoozed": [names.SNOOZED],
                "blocked": [],
            }
            found = where.pop(job_id, [])
            assert found in ([["line"], ["drain"]] if job["state"] == "waiting" else [expected[job["state"]]]), job_id
            if found == [names.LEASES]:
                workspace = job["route"].split("/")[0]
                places[workspace] = places.get(workspace, 0) + 1
            blocked = job.get("batch") and await self.redis.sismember(names.blocked(job["batch"]), job_id)
            assert bool(blocked) == (job["state"] == "blocked" and "batch" in job), "a blocked job is not known as such"
        assert where == {}, "what ended is still somewhere"
        assert {text(k): int(v) for k, v in (await self.redis.hgetall(names.PLACES)).items()} == places
        await self._check_registers([key.removeprefix("aq:line:") for key in lists if key.startswith("aq:line:")])
        drains = {key.removeprefix("aq:drain:") for key in lists if key.startswith("aq:drain:")}
        assert drains <= {text(name) for name in await self.redis.smembers(names.DRAINING)}

    async def _check_registers(self, lines: list[str]) -> None:
        for line in lines:
            priority, batch, route = line.split("|", 2)
            lane = text(await self.redis.hget(names.ROUTES, route) or f"?{route}")
            registered = await self.redis.zscore(names.lane_lines(lane, priority), line) is not None
            paused = bool(batch) and await self.redis.hexists(names.batch(batch), "paused_ms")
            assert registered != paused, line
            if paused:
                continue
            shut = await self.redis.zscore(names.PARKED, lane) is not None
            shut = shut or bool(await self.redis.sismember(names.PAUSED, lane))
            workspace = lane.lstrip("?").split("/")[0]
            opened = await self.redis.zscore(names.workspace_lanes(workspace, priority), lane) is not None
            assert opened != shut, lane
            assert shut or await self.redis.zscore(names.RING, workspace) is not None

    async def end_all(self) -> None:
        """Let everything go on to its end."""
        for workspace, batch in itertools.product(WORKSPACES, BATCHES[1:]):
            await self.do_batch("resume", workspace, batch)
        for workspace, model in itertools.product(WORKSPACES, MODELS):
            await self.do_lane("resume", workspace, model)
        for _ in range(10 + 2 * len(self.enqueued)):
            for held in self.held:
                await self._finish(held)
            self.held.clear()
            await self.do_snoozes_end()
            await self.do_release(1000)
            for hint in self.hints:
                await self._claim(hint)
            self.hints.clear()
            await self.do_drain(1000)
            if not self.unfinished():
                break
            if not self.held:
                await self.do_workers_die()
        assert self.unfinished() == [], "lost"
        assert await self.redis.keys(names.blocked("*")) == [], "what ended is still blocked"
        assert all(self.ended[job_id] for job_id in self.must_end)
        await self.check()
        for workspace, batch in itertools.product(WORKSPACES, BATCHES[1:]):
            fields = await self.redis.hgetall(names.batch(f"{workspace}-{batch}"))
            assert fields.get(b"finished", b"0") == fields.get(b"enqueued", b"0")


def _is_list(key: str) -> bool:
    return key.startswith(("aq:line:", "aq:drain:"))


@settings(
    max_examples=40,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(steps=STEPS)
def test_no_job_is_lost_doubled_or_out_of_order_and_every_register_agrees(
    runner: asyncio.Runner, valkey_url: str, steps: list[tuple[Any, ...]]
) -> None:
    async def play() -> None:
        client = Redis.from_url(valkey_url)
        with sync_redis.Redis.from_url(valkey_url) as connection:
            await client.flushall()
            played = Played(client, Producer(connection))
            for workspace, assistant, batch, thread in itertools.product(WORKSPACES, ASSISTANTS, BATCHES[:2], THREADS):
                await played.do_enqueue(workspace, assistant, batch, thread)
            for step in steps:
                await played.do(*step)
                await played.check()
            await played.end_all()
        await client.aclose()

    runner.run(play())
