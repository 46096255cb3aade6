"""The queue in a real Valkey: what is enqueued, released, claimed, renewed, journaled, snoozed, ended and swept."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
from redis.asyncio import Redis

from producer import Producer
from producer.entries import CHUNK_JOBS
from producer.handles import BatchHandle
from schemas import InvokeJob, ProducerError, Status, Usage, names
from schemas.batch import BatchState
from schemas.outcome import Code
from schemas.scripts import read_script
from tests.given import (
    ROUTE,
    a_job,
    a_result,
    claimed,
    let_leases_lapse,
    let_snoozes_end,
    release,
    released,
    state,
    text,
    until,
    waiting,
)
from worker.queue.queue import CLAIM_WITHIN_S, LEASE_S, Claimed, Hint, JobQueue, StaleJobError, Swept
from worker.queue.steps import ReplyStep, ResultStep

pytestmark = pytest.mark.anyio


@pytest.fixture
def queue(redis_client: Redis) -> JobQueue:
    return JobQueue(redis_client)


@pytest.fixture
async def server_ms(redis_client: Redis) -> int:
    seconds, microseconds = await redis_client.time()
    return int(seconds * 1000 + microseconds // 1000)


def reply(content: str = "positive") -> ReplyStep:
    usage = Usage(prompt_tokens=10, completion_tokens=2)
    return ReplyStep(content=content, finish_reason="stop", model="m1", usage=usage)


async def end(queue: JobQueue, held: Claimed, **fields: object) -> None:
    await queue.finish(held, a_result(held.record, **fields))


async def claim_all(queue: JobQueue) -> list[Claimed]:
    held = [await queue.claim(hint) for hint in await released(queue)]
    assert None not in held
    return [each for each in held if each]


def status_of(batch: BatchHandle) -> dict[str, object]:
    status = batch.status()
    assert status is not None
    return {"total": status.total, "enqueued": status.enqueued, "counts": status.counts, "state": status.state}


class TestEnqueueing:
    async def test_a_job_that_is_sent_twice_waits_once(self, producer: Producer, redis_client: Redis) -> None:
        first, again = producer.enqueue(a_job("j")), producer.enqueue(a_job("j", variables={"review": "other"}))
        assert first.id == again.id == "j"
        assert await waiting(redis_client) == ["j"]
        assert '"good"' in (await state(redis_client, "j"))["record"]

    async def test_jobs_without_an_id_are_different_jobs(self, producer: Producer, redis_client: Redis) -> None:
        assert producer.enqueue(a_job()).id != producer.enqueue(a_job()).id
        assert len(await waiting(redis_client)) == 2

    async def test_a_job_that_is_sent_again_while_it_runs_is_not_put_back(
        self, producer: Producer, queue: JobQueue, redis_client: Redis
    ) -> None:
        producer.enqueue(a_job("j"))
        await claimed(queue)
        producer.enqueue(a_job("j"))
        assert await waiting(redis_client) == []
        assert (await state(redis_client, "j"))["state"] == "running"

    async def test_a_job_that_is_sent_again_after_its_end_gives_the_first_result(
        self, producer: Producer, queue: JobQueue, redis_client: Redis
    ) -> None:
        producer.enqueue(a_job("j"))
        await end(queue, await claimed(queue))
        assert producer.enqueue(a_job("j")).result(timeout_s=0).output == "positive"
        assert await waiting(redis_client) == []

    async def test_a_batch_that_is_sent_twice_has_each_row_once(self, producer: Producer, redis_client: Redis) -> None:
        producer.enqueue_many([a_job(), a_job("named"), a_job()], batch_id="b")
        batch = producer.enqueue_many([a_job(), a_job("named"), a_job()], batch_id="b")
        assert await waiting(redis_client) == ["b.0", "named", "b.2"]
        assert status_of(batch) == {"total": 3, "enqueued": 3, "counts": {}, "state": BatchState.QUEUED}

    async def test_a_row_that_is_sent_again_after_its_end_and_its_results_expiry_does_not_run_again(
        self, producer: Producer, queue: JobQueue, redis_client: Redis
    ) -> None:
        producer.enqueue_many([a_job(), a_job()], batch_id="b")
        first, _ = await claim_all(queue)
        await end(queue, first)
        await redis_client.delete(names.result(first.id))
        batch = producer.enqueue_many([a_job(), a_job()], batch_id="b")
        assert await waiting(redis_client) == []
        assert status_of(batch)["total"] == 2

    async def test_a_batch_longer_than_a_chunk_keeps_the_order_of_its_rows(
        self, producer: Producer, redis_client: Redis
    ) -> None:
        rows = 2 * CHUNK_JOBS + 1
        batch = producer.enqueue_many((a_job() for _ in range(rows)), batch_id="b")
        assert await waiting(redis_client) == [f"b.{row}" for row in range(rows)]
        assert status_of(batch)["total"] == rows

    async def test_an_iterable_that_breaks_leaves_the_batch_open_and_sending_it_again_completes_it(
        self, producer: Producer, redis_client: Redis
    ) -> None:
        def breaks() -> Iterator[InvokeJob]:
            yield from [a_job()] * CHUNK_JOBS
            raise OSError("the file went away")

        with pytest.raises(OSError, match="went away"):
            producer.enqueue_many(breaks(), batch_id="b")
        assert status_of(producer.batch("b"))["total"] is None
        batch = producer.enqueue_many([a_job()] * (CHUNK_JOBS + 3), batch_id="b")
        assert status_of(batch)["total"] == CHUNK_JOBS + 3
        assert len(await waiting(redis_client)) == CHUNK_JOBS + 3

    async def test_four_that_send_the_same_batch_at_once_enqueue_each_row_once(
        self, producer: Producer, redis_client: Redis
    ) -> None:
        barrier = threading.Barrier(4)

        def send() -> None:
            barrier.wait()
            producer.enqueue_many([a_job()] * 1200, batch_id="b")

        with ThreadPoolExecutor(4) as threads:
            for sent in [threads.submit(send) for _ in range(4)]:
                sent.result()
        ids = await waiting(redis_client)
        assert sorted(ids) == sorted(f"b.{row}" for row in range(1200))
        assert status_of(producer.batch("b"))["total"] == 1200

    async def test_a_sealed_batch_refuses_a_further_row_and_keeps_what_it_has(
        self, producer: Producer, redis_client: Redis
    ) -> None:
        batch = producer.enqueue_many([a_job()], batch_id="b")
        with pytest.raises(ProducerError, match="batch b is closed with 1 jobs"):
            producer.enqueue_many([a_job(), a_job()], batch_id="b")
        assert await waiting(redis_client) == ["b.0"]
        assert status_of(batch) == {"total": 1, "enqueued": 1, "counts": {}, "state": BatchState.QUEUED}

    async def test_a_batch_called_as_another_ones_rows_does_not_meet_them(self, producer: Producer) -> None:
        producer.enqueue_many([a_job()], batch_id="b")
        other = producer.enqueue_many([a_job()], batch_id="b:rows")
        assert status_of(other)["total"] == 1

    async def test_a_batch_of_two_workspaces_is_refused_by_row(self, producer: Producer) -> None:
        with pytest.raises(ProducerError, match="row 1: workspace 'other'"):
            producer.enqueue_many([a_job(), a_job(assistant="other/p/a")], batch_id="b")

    async def test_an_empty_batch_is_refused(self, producer: Producer) -> None:
        with pytest.raises(ProducerError, match="at least one job"):
            producer.enqueue_many([], batch_id="b")
        assert producer.batch("b").status() is None

    async def test_an_enqueue_wakes_who_listens(self, producer: Producer, redis_client: Redis) -> None:
        async with redis_client.pubsub(ignore_subscribe_messages=True) as channel:
            await channel.subscribe(names.WAKE_CHANNEL)
            assert await channel.get_message(timeout=0.2) is None
            producer.enqueue(a_job())
            assert await channel.get_message(timeout=5) is not None

    def test_a_server_without_its_append_only_file_is_told_about_once(
        self, producer: Producer, valkey_url: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        with redis.Redis.from_url(valkey_url) as connection:
            connection.config_set("appendonly", "no")
            try:
                for _ in range(3):
                    producer.enqueue(a_job())
            finally:
                connection.config_set("appendonly", "yes")
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "cannot confirm writes to disk" in caplog.text


class TestReleasing:
    async def test_nothing_is_released_without_a_worker(self, producer: Producer, queue: JobQueue) -> None:
        producer.enqueue(a_job())
        assert await release(queue, 10) == []

    async def test_as_many_are_released_as_the_live_workers_can_run_and_a_quarter_more(
        self, producer: Producer, queue: JobQueue
    ) -> None:
        producer.enqueue_many([a_job()] * 40, batch_id="b")
        await queue.heartbeat("one", capacity=4, ttl_s=60)
        await queue.heartbeat("two", capacity=4, ttl_s=60)
        assert len(await release(queue, 100)) == 10
        assert await release(queue, 100) == []

    async def test_a_job_that_ended_makes_room_for_one(self, producer: Producer, queue: JobQueue) -> None:
        producer.enqueue_many([a_job()] * 40, batch_id="b")
        hints = await released(queue, capacity=4)
        held = await queue.claim(hints[0])
        assert held
        await end(queue, held)
        assert [hint.job_id for hint in await release(queue, 100)] == ["b.5"]

    async def test_no_more_are_released_than_asked_for(self, producer: Producer, queue: JobQueue) -> None:
        producer.enqueue_many([a_job()] * 40, batch_id="b")
        await queue.heartbeat("one", capacity=40, ttl_s=60)
        assert len(await release(queue, 3)) == 3

    async def test_a_dead_workers_capacity_lapses(self, producer: Producer, queue: JobQueue, server_ms: int) -> None:
        producer.enqueue_many([a_job()] * 40, batch_id="b")
        await queue.heartbeat("dead", capacity=100, ttl_s=-0.001)
        await queue.heartbeat("alive", capacity=4, ttl_s=60)
        assert len(await release(queue, 100)) == 5

    async def test_a_worker_that_leaves_takes_its_capacity_along(self, producer: Producer, queue: JobQueue) -> None:
        producer.enqueue(a_job())
        await queue.heartbeat("one", capacity=100, ttl_s=60)
        await queue.leave("one")
        assert await release(queue, 100) == []

    async def test_lines_take_turns_however_long_the_first_one_is(self, producer: Producer, queue: JobQueue) -> None:
        producer.enqueue_many([a_job()] * 100, batch_id="long")
        for job_id in ("other.0", "other.1"):
            producer.enqueue(a_job(job_id, assistant="acme/p/other", priority="batch"))
        producer.enqueue(a_job("third.0", assistant="acme/p/third", priority="batch"))
        hints = await released(queue, capacity=8)
        assert [hint.job_id for hint in hints] == [
            "long.0",
            "other.0",
            "third.0",
            "long.1",
            "other.1",
            *(f"long.{row}" for row in range(2, 7)),
        ]

    async def test_turns_go_on_where_the_last_release_ended(self, producer: Producer, queue: JobQueue) -> None:
        for name in ("a", "b", "c"):
            producer.enqueue_many([a_job(assistant=f"acme/p/{name}")] * 5, batch_id=name)
        await queue.heartbeat("one", capacity=100, ttl_s=60)
        turns = [(await release(queue, 1))[0].job_id for _ in range(6)]
        assert turns == ["a.0", "b.0", "c.0", "a.1", "b.1", "c.1"]

    async def test_many_that_release_at_once_release_each_job_once(
        self, producer: Producer, queue: JobQueue, valkey_url: str
    ) -> None:
        producer.enqueue_many([a_job(assistant=f"acme/p/a{n % 10}") for n in range(500)], batch_id="b")
        await queue.heartbeat("one", capacity=1000, ttl_s=60)
        script = producer._redis.register_script(read_script("worker.admission", "release.lua"))

        def release() -> list[bytes]:
            found: list[bytes] = []
            while pairs := script(args=[7, 8000, 25, 1_000_000, 10])[1:]:
                found += pairs[::2]
            return found

        with ThreadPoolExecutor(4) as threads:
            parts = [threads.submit(release) for _ in range(4)]
            ids = list(itertools.chain.from_iterable(part.result() for part in parts))
        assert len(ids) == len(set(ids)) == 500


class TestClaiming:
    async def test_a_claim_gives_what_was_enqueued(self, producer: Producer, queue: JobQueue, server_ms: int) -> None:
        job = a_job("j", custom_id="row 1", metadata={"score": 1.5, "ok": True}, thread_id="t", version=3)
        producer.enqueue(job)
        held = await claimed(queue)
        assert held.record.job == job
        assert (held.epoch, held.attempts, held.journal) == (1, 0, ())
        assert server_ms <= held.enqueued_ms <= held.claimed_ms

    async def test_a_claimed_job_is_leased_and_running(
        self, producer: Producer, queue: JobQueue, redis_client: Redis, server_ms: int
    ) -> None:
        producer.enqueue(a_job("j"))
        await claimed(queue)
        assert (await state(redis_client, "j"))["state"] == "running"
        lease_ms = await redis_client.zscore(names.LEASES, "j")
        assert lease_ms is not None
        assert LEASE_S * 1000 <= lease_ms - server_ms < LEASE_S * 1000 + 5000

    async def test_a_released_job_that_nobody_claims_is_leased_too(
        self, producer: Producer, queue: JobQueue, redis_client: Redis, server_ms: int
    ) -> None:
        producer.enqueue(a_job("j"))
        await released(queue)
        lease_ms = await redis_client.zscore(names.LEASES, "j")
        assert lease_ms is not None
        assert CLAIM_WITHIN_S * 1000 <= lease_ms - server_ms < CLAIM_WITHIN_S * 1000 + 5000

    @pytest.mark.parametrize("epoch", [0, 2, 100])
    async def test_a_hint_of_another_epoch_changes_nothing(
        self, producer: Producer, queue: JobQueue, redis_client: Redis, epoch: int
    ) -> None:
        producer.enqueue(a_job("j"))
        await released(queue)
        before = await state(redis_client, "j")
        assert await queue.claim(Hint("j", epoch)) is None
        assert await state(redis_client, "j") == before

    async def test_a_second_hint_of_the_same_epoch_gets_nothing(self, producer: Producer, queue: JobQueue) -> None:
        producer.enqueue(a_job("j"))
        held = await claimed(queue)
        assert await queue.claim(held.hint) is None

    async def test_a_hint_for_a_job_that_waits_again_gets_nothing(self, producer: Producer, queue: JobQueue) -> None:
        producer.enqueue(a_job("j"))
        held = await claimed(queue)
        await queue.snooze(held, delay_s=0, burns_attempt=False, hold_lane=False)
        assert await queue.claim(held.hint) is None

    async def test_a_hint_for_a_job_that_ended_gets_nothing(
        self, producer: Producer, queue: JobQueue, redis_client: Redis
    ) -> None:
        producer.enqueue(a_job("j"))
        held = await claimed(queue)
        await end(queue, held)
        assert await queue.claim(held.hint) is None
        assert not await redis_client.exists(names.job("j"))

    async def test_a_hint_for_a_job_that_never_was_gets_nothing(self, queue: JobQueue, redis_client: Redis) -> None:
        assert await queue.claim(Hint("nobody", 1)) is None
        assert await redis_client.keys("*") == []

    async def test_a_claim_whose_answer_was_lost_gets_the_job_when_it_is_sent_again(
        self, producer: Producer, queue: JobQueue
    ) -> None:
        producer.enqueue(a_job("j"))
        (hint,) = await released(queue)
        keys = [names.job("j"), names.journal("j")]
        first = await queue._run("claim", keys, ["j", hint.epoch, 6000, "token"])
        again = await queue._run("claim", keys, ["j", hint.epoch, 6000, "token"])
        assert first[:3] == again[:3]
        assert await queue._run("claim", keys, ["j", hint.epoch, 6000, "another's"]) is None


class TestLeases:
    async def test_renewing_moves_the_end_of_the_lease(
        self, producer: Producer, queue: JobQueue, redis_client: Redis, server_ms: int
    ) -> None:
        producer.enqueue(a_job("j"))
        held = await claimed(queue)
        await redis_client.zadd(names.LEASES, {"j": server_ms})
        assert await queue.renew([held.hint]) == set()
        lease_ms = await redis_client.zscore(names.LEASES, "j")
        assert lease_ms is not None
        assert lease_ms >= server_ms + LEASE_S * 1000

    async def test_renewing_tells_what_was_lost_and_renews_the_rest(
        self, producer: Producer, queue: JobQueue, redis_client: Redis
    ) -> None:
        producer.enqueue_many([a_job()] * 4, batch_id="b")
        kept, ended, swept, snoozed = await claim_all(queue)
        await end(queue, ended)
        await redis_client.zadd(names.LEASES, {swept.id: 1})
        await queue.sweep()
        await queue.snooze(snoozed, delay_s=9, burns_attempt=False, hold_lane=False)
        lost = await queue.renew([each.hint for each in (kept, ended, swept, snoozed)])
        assert lost == {ended.id, swept.id, snoozed.id}
        assert [text(job_id) for job_id in await redis_client.zrange(names.LEASES, 0, -1)] == [kept.id]

    async def test_a_job_that_another_worker_claimed_is_lost_to_the_first(
        self, producer: Producer, queue: JobQueue, redis_client: Redis
    ) -> None:
        producer.enqueue(a_job("j"))
        first = await claimed(queue)
        await let_leases_lapse(redis_client)
        await queue.sweep()
        second = await claimed(queue)
        assert await queue.renew([first.hint]) == {"j"}
        assert await queue.renew([second.hint]) == set()

    async def test_sweeping_leaves_what_is_leased_and_what_waits_for_a_time(
        self, producer: Producer, queue: JobQueue
    ) -> None:
        producer.enqueue_many([a_job()] * 3, batch_id="b")
        _, _, third = await claim_all(queue)
        await queue.snooze(third, delay_s=60, burns_attempt=False, hold_lane=False)
        assert await queue.sweep() == Swept(recovered=0, due=0)

    async def test_lost_jobs_return_to_the_head_of_their_line_in_order_at_a_higher_epoch(
        self, producer: Producer, queue: JobQueue, redis_client: Redis
    ) -> None:
        producer.enqueue_many([a_job()] * 12, batch_id="b")
        await released(queue, capacity=8)
        await let_leases_lapse(redis_client)
        for score, row in enumerate((3, 1, 0, 2), start=2):
            await redis_client.zadd(names.LEASES, {f"b.{row}": score})
        assert await queue.sweep() == Swept(recovered=10, due=0)
        assert (await waiting(redis_client))[6:] == ["b.3", "b.1", "b.0", "b.2", "b.10", "b.11"]
        assert {(await state(redis_client, f"b.{row}"))["epoch"] for row in range(10)} == {"2"}
        assert await redis_client.zcard(names.LEASES) == 0

    async def test_due_jobs_return_in_the_order_in_which_they_fell_due(
        self, producer: Producer, queue: JobQueue, redis_client: Redis
    ) -> None:
        producer.enqueue_many([a_job()] * 4, batch_id="b")
        for held, delay_s in zip(await claim_all(queue), (40, 20, 30, 10), strict=True):
            await queue.snooze(held, delay_s=delay_s, burns_attempt=False, hold_lane=False)
        await let_snoozes_end(redis_client)
        assert await queue.sweep() == Swept(recovered=0, due=4)
        assert await waiting(redis_client) == ["b.3", "b.1", "b.2", "b.0"]
        assert [held.attempts for held in await claim_all(queue)] == [0] * 4

    async def test_a_sweep_moves_no_more_than_it_was_told_and_the_next_goes_on(
        self, producer: Producer, queue: JobQueue, redis_client: Redis
    ) -> None:
        producer.enqueue_many([a_job()] * 5, batch_id="b")
        await claim_all(queue)
        await let_leases_lapse(redis_client)
        assert [(await queue.sweep(2)).recovered for _ in range(4)] == [2, 2, 1, 0]

    async def test_a_journal_outlives_the_worker_that_wrote_it(
        self, producer: Producer, queue: JobQueue, redis_client: Redis
    ) -> None:
        producer.enqueue(a_job("j"))
        held = await claimed(queue)
        kept = ResultStep(result=a_result(held.record))
        await queue.append(held, reply())
        await queue.append(held, kept)
        await let_leases_lapse(redis_client)
        await queue.sweep()
        assert (await claimed(queue)).journal == (reply(), kept)


class TestStaleWriters:
    @pytest.fixture
    async def stale(self, producer: Producer, queue: JobQueue, redis_client: Redis) -> Claimed:
        """A claim whose lease ended, after which another worker claimed the job."""
        producer.enqueue_many([a_job()], batch_id="b")
        held = await claimed(queue)
        await let_leases_lapse(redis_client)
        await queue.sweep()
        await claimed(queue)
        return held

    @pytest.fixture
    async def untouched(self, stale: Claimed, redis_client: Redis) -> AsyncIterator[None]:
        async def dump() -> dict[bytes, bytes | None]:
            return {text(key).encode(): await redis_client.dump(key) for key in await redis_client.keys("*")}

        before = await dump()
        yield
        assert await dump() == before

    async def test_a_stale_reply_is_refused(self, stale: Claimed, queue: JobQueue, untouched: None) -> None:
        with pytest.raises(StaleJobError, match="journal"):
            await queue.append(stale, reply())

    async def test_a_stale_snooze_is_refused(self, stale: Claimed, queue: JobQueue, untouched: None) -> None:
        with pytest.raises(StaleJobError, match="snooze"):
            await queue.snooze(stale, delay_s=5, burns_attempt=True, hold_lane=True)

    async def test_a_stale_end_is_refused(self, stale: Claimed, queue: JobQueue, untouched: None) -> None:
        with pytest.raises(StaleJobError, match="finish"):
            await end(queue, stale)

    async def test_a_worker_whose_lease_lapsed_unseen_may_still_write(
        self, producer: Producer, queue: JobQueue, redis_client: Redis
    ) -> None:
        producer.enqueue(a_job("j"))
        held = await claimed(queue)
        await let_leases_lapse(redis_client)
        await queue.append(held, reply())
        await end(queue, held)
        assert await queue.sweep() == Swept(recovered=0, due=0)


class TestRepeatedWrites:
    """A client that lost an answer sends the command again."""

    async def test_a_reply_that_is_sent_twice_stands_in_the_journal_once(
        self, producer: Producer, queue: JobQueue, redis_client: Redis
    ) -> None:
        producer.enqueue(a_job("j"))
        held = await claimed(queue)
        for _ in range(2):
            await queue.append(held, reply())
        assert await redis_client.llen(names.journal("j")) == 1

    async def test_a_snooze_that_is_sent_twice_burns_one_attempt_and_puts_the_job_back_once(
        self, producer: Producer, queue: JobQueue, redis_client: Redis
    ) -> None:
        producer.enqueue(a_job("j"))
        held = await claimed(queue)
        await queue.snooze(held, delay_s=0, burns_attempt=True, hold_lane=False)
        with pytest.raises(StaleJobError):
            await queue.snooze(held, delay_s=0, burns_attempt=True, hold_lane=False)
        assert await waiting(redis_client) == ["j"]
        assert (await claimed(queue)).attempts == 1

    async def test_an_end_that_is_sent_twice_counts_once_and_frees_one_job_of_the_thread(
        self, producer: Producer, queue: JobQueue
    ) -> None:
        batch = producer.enqueue_many([a_job(thread_id="t")] * 3, batch_id="b")
        held = await claimed(queue)
        for _ in range(2):
            await end(queue, held)
        assert status_of(batch)["counts"] == {Status.SUCCEEDED: 1}
        assert [hint.job_id for hint in await released(queue)] == ["b.1"]


class TestSnoozing:
    async def test_a_held_line_has_its_job_at_the_head_again(
        self, producer: Producer, queue: JobQueue, redis_client: Redis
    ) -> None:
        producer.enqueue_many([a_job()] * 3, batch_id="b")
        await queue.heartbeat("one", capacity=100, ttl_s=60)
        (hint,) = await release(queue, 1)
        held = await queue.claim(hint)
        assert held
        await queue.snooze(held, delay_s=30, burns_attempt=False, hold_lane=True)
        assert await waiting(redis_client) == ["b.0", "b.1", "b.2"]
        assert await release(queue, 10) == []

    @pytest.mark.parametrize("delays_s", [(30, 60), (60, 30)])
    async def test_of_two_holds_of_a_line_the_longer_wins(
        self, producer: Producer, queue: JobQueue, redis_client: Redis, delays_s: tuple[float, float], server_ms: int
    ) -> None:
        producer.enqueue_many([a_job()] * 2, batch_id="b")
        for held, delay_s in zip(await claim_all(queue), delays_s, strict=True):
            await queue.snooze(held, delay_s=delay_s, burns_attempt=False, hold_lane=True)
        until_ms = await redis_client.zscore(names.PARKED, f"?{ROUTE}")
        assert until_ms is not None
        assert 50_000 < float(until_ms) - server_ms <= 61_000

    async def test_attempts_are_counted_only_when_burnt(self, producer: Producer, queue: JobQueue) -> None:
        producer.enqueue(a_job("j"))
        for burns in (True, False, True):
            await queue.snooze(await claimed(queue), delay_s=0, burns_attempt=burns, hold_lane=False)
        assert (await claimed(queue)).attempts == 2

    async def test_a_snoozed_job_gives_its_place_to_another(self, producer: Producer, queue: JobQueue) -> None:
        producer.enqueue_many([a_job()] * 3, batch_id="b")
        first, second = [await queue.claim(hint) for hint in await released(queue, capacity=1)]
        assert first
        assert second
        await queue.snooze(first, delay_s=60, burns_attempt=False, hold_lane=False)
        assert [hint.job_id for hint in await release(queue, 10)] == ["b.2"]


class TestThreads:
    async def test_jobs_of_one_thread_run_one_at_a_time_in_order(
        self, producer: Producer, queue: JobQueue, redis_client: Redis
    ) -> None:
        for number in range(3):
            producer.enqueue(a_job(f"j{number}", thread_id="t"))
        for number in range(3):
            held = await claimed(queue)
            assert held.id == f"j{number}"
            later = [(await state(redis_client, f"j{after}"))["state"] for after in range(number + 1, 3)]
            assert later == ["blocked"] * len(later)
            await end(queue, held)

    @pytest.mark.parametrize("status", list(Status))
    async def test_the_next_one_runs_however_the_earlier_one_ended(
        self, producer: Producer, queue: JobQueue, status: Status
    ) -> None:
        for number in range(2):
            producer.enqueue(a_job(f"j{number}", thread_id="t"))
        await end(queue, await claimed(queue), status=status)
        assert (await claimed(queue)).id == "j1"

    async def test_the_next_one_goes_before_jobs_that_were_enqueued_after_it(
        self, producer: Producer, queue: JobQueue
    ) -> None:
        producer.enqueue_many([a_job(thread_id="t"), a_job(thread_id="t"), a_job(), a_job()], batch_id="b")
        await queue.heartbeat("one", capacity=100, ttl_s=60)
        (hint,) = await release(queue, 1)
        held = await queue.claim(hint)
        assert held
        await end(queue, held)
        assert [hint.job_id for hint in await release(queue, 10)] == ["b.1", "b.2", "b.3"]

    async def test_a_lost_or_snoozed_job_keeps_its_turn(
        self, producer: Producer, queue: JobQueue, redis_client: Redis
    ) -> None:
        for number in range(2):
            producer.enqueue(a_job(f"j{number}", thread_id="t"))
        await claimed(queue)
        await let_leases_lapse(redis_client)
        await queue.sweep()
        held = await claimed(queue)
        assert held.id == "j0"
        await queue.snooze(held, delay_s=60, burns_attempt=True, hold_lane=False)
        assert await released(queue) == []

    async def test_threads_of_one_name_in_two_workspaces_do_not_wait_for_each_other(
        self, producer: Producer, queue: JobQueue
    ) -> None:
        producer.enqueue(a_job("ours", thread_id="t"))
        producer.enqueue(a_job("theirs", thread_id="t", assistant="other/p/a"))
        assert {hint.job_id for hint in await released(queue)} == {"ours", "theirs"}

    async def test_the_next_one_may_stand_in_another_line(self, producer: Producer, queue: JobQueue) -> None:
        producer.enqueue(a_job("j0", thread_id="t"))
        producer.enqueue(a_job("j1", thread_id="t", assistant="acme/p/other"))
        await end(queue, await claimed(queue))
        assert (await claimed(queue)).id == "j1"


class TestBatches:
    async def test_counts_are_those_of_its_jobs(self, producer: Producer, queue: JobQueue) -> None:
        batch = producer.enqueue_many([a_job()] * 5, batch_id="b", webhook="https://example.com/h", label="file")
        held = await claim_all(queue)
        statuses = [Status.SUCCEEDED, Status.SUCCEEDED, Status.INVALID_OUTPUT, Status.FAILED]
        for number, (each, status) in enumerate(zip(held[:4], statuses, strict=True)):
            await end(queue, each, status=status, requests=number, prompt_tokens=10 * number, completion_tokens=1)
        told = batch.status()
        assert told is not None
        assert told.counts == {Status.SUCCEEDED: 2, Status.INVALID_OUTPUT: 1, Status.FAILED: 1}
        assert (told.requests, told.prompt_tokens, told.completion_tokens) == (6, 60, 4)
        assert (told.total, told.finished, told.ended) == (5, 4, False)
        assert (told.state, told.webhook, told.label) == (BatchState.RUNNING, "https://example.com/h", "file")

    async def test_it_ends_with_its_last_job_and_once(
        self, producer: Producer, queue: JobQueue, redis_client: Redis
    ) -> None:
        batch = producer.enqueue_many([a_job()] * 3, batch_id="b")
        for held in await claim_all(queue):
            assert await queue.ending_batches() == {}
            await end(queue, held)
        assert set(await queue.ending_batches()) == {"b"}
        assert await queue.end_batch("b", state="completed") is True
        assert await queue.end_batch("b", state="completed") is False
        assert await queue.ending_batches() == {}
        assert producer.open_batches() == []
        assert status_of(batch)["state"] is BatchState.COMPLETED
        assert 0 < await redis_client.ttl(names.batch("b")) <= names.RESULT_TTL_S
        assert 0 < await redis_client.ttl(names.batch_rows("b")) <= names.RESULT_TTL_S

    async def test_one_whose_jobs_end_before_it_is_sealed_ends_when_it_is_sealed(
        self, producer: Producer, queue: JobQueue, redis_client: Redis
    ) -> None:
        def jobs() -> Iterator[InvokeJob]:
            yield from [a_job()] * CHUNK_JOBS
            sent.set()
            assert ended.wait(20)

        async def has_all() -> bool:
            return bool(await redis_client.hget(names.batch("b"), "enqueued") == str(CHUNK_JOBS).encode())

        sent, ended = threading.Event(), threading.Event()
        with ThreadPoolExecutor(1) as threads:
            batch = threads.submit(producer.enqueue_many, jobs(), batch_id="b")
            assert sent.wait(20)
            await until(has_all)
            while hints := await released(queue):
                for hint in hints:
                    held = await queue.claim(hint)
                    assert held
                    await end(queue, held)
            assert await queue.ending_batches() == {}
            ended.set()
            assert status_of(batch.result())["counts"] == {Status.SUCCEEDED: CHUNK_JOBS}
        assert set(await queue.ending_batches()) == {"b"}

    async def test_one_that_is_sent_again_after_its_end_stays_ended(
        self, producer: Producer, queue: JobQueue, redis_client: Redis
    ) -> None:
        producer.enqueue_many([a_job()], batch_id="b")
        await end(queue, await claimed(queue))
        await queue.end_batch("b", state="completed")
        batch = producer.enqueue_many([a_job()], batch_id="b")
        assert status_of(batch)["state"] is BatchState.COMPLETED
        assert await queue.ending_batches() == {}
        assert await redis_client.zcard(names.BATCHES) == 0

    async def test_who_waits_for_a_batch_is_told_of_its_end(self, producer: Producer, queue: JobQueue) -> None:
        batch = producer.enqueue_many([a_job()], batch_id="b")
        with ThreadPoolExecutor(1) as threads:
            waits = threads.submit(batch.wait, timeout_s=20)
            await end(queue, await claimed(queue))
            await queue.end_batch("b", state="completed")
            assert waits.result().counts == {Status.SUCCEEDED: 1}

    async def test_who_waits_for_a_job_is_told_of_its_end(self, producer: Producer, queue: JobQueue) -> None:
        handle = producer.enqueue(a_job("j"))
        with ThreadPoolExecutor(1) as threads:
            waits = threads.submit(handle.result, timeout_s=20)
            await end(queue, await claimed(queue), output="negative")
            assert waits.result().output == "negative"


async def test_after_the_end_redis_holds_results_and_counts_that_expire_and_nothing_else(
    producer: Producer, queue: JobQueue, redis_client: Redis
) -> None:
    producer.enqueue_many([a_job(thread_id="t"), a_job(thread_id="t"), a_job()], batch_id="b")
    producer.enqueue(a_job("single"))
    burnt = False
    while hints := await released(queue):
        for hint in hints:
            held = await queue.claim(hint)
            assert held
            await queue.append(held, reply())
            if not burnt:
                burnt = True
                await queue.snooze(held, delay_s=0, burns_attempt=True, hold_lane=False)
            else:
                await end(queue, held)
    await queue.sweep()
    await queue.end_batch("b", state="completed")
    await queue.leave("a-worker")
    assert await released(queue) == []
    await queue.leave("a-worker")
    left = {key.decode() async for key in redis_client.scan_iter()}
    assert left == {
        names.SWEPT,
        names.FLUSH,
        *(f"{names.RING}:now", f"{names.RING}:left", f"{names.PREFIX}:turn"),
        names.batch("b"),
        names.batch_rows("b"),
        *(names.result(job_id) for job_id in ("b.0", "b.1", "b.2", "single")),
    }
    for key in left - {names.SWEPT, f"{names.RING}:now", f"{names.PREFIX}:turn"}:
        assert 0 < await redis_client.ttl(key) <= names.RESULT_TTL_S


async def test_leases_that_ended_while_nobody_swept_are_given_once_more(
    producer: Producer, queue: JobQueue, redis_client: Redis
) -> None:
    producer.enqueue(a_job("j"))
    held = await claimed(queue)
    await redis_client.set(names.SWEPT, 1)
    await let_leases_lapse(redis_client)

    assert (await queue.sweep()).recovered == 0
    await queue.append(held, reply())

    await let_leases_lapse(redis_client)
    assert (await queue.sweep()).recovered == 1


async def test_a_lease_that_is_about_to_end_when_the_server_is_back_is_given_once_more_too(
    producer: Producer, queue: JobQueue, redis_client: Redis, server_ms: int
) -> None:
    """Its worker tries again only when its pause is over."""
    producer.enqueue(a_job("j"))
    held = await claimed(queue)
    await redis_client.set(names.SWEPT, 1)
    # Long enough that it cannot end in this test before it is swept.
    await redis_client.zadd(names.LEASES, {held.id: server_ms + LEASE_S * 1000 - 1})
    await queue.sweep()
    lease_ends_ms = await redis_client.zscore(names.LEASES, held.id)
    assert lease_ends_ms is not None
    assert lease_ends_ms >= server_ms + LEASE_S * 1000


async def test_a_step_that_equals_the_last_one_is_kept_when_its_index_says_that_it_is_another(
    producer: Producer, queue: JobQueue, redis_client: Redis
) -> None:
    producer.enqueue(a_job("j"))
    held = await claimed(queue)
    for index in (0, 0, 1, 1):
        await queue.append(held, reply(), index=index)
    assert await redis_client.llen(names.journal("j")) == 2


@pytest.mark.parametrize(
    "record", ['{"id": "j", "novelty": 1}', "{", '{"id": "j", "job": {"assistant": "a/b/c"}, "x": 1}']
)
async def test_a_record_that_cannot_be_read_is_claimed_as_one_that_ends(
    record: str, producer: Producer, queue: JobQueue, redis_client: Redis
) -> None:
    producer.enqueue(a_job("j"))
    await redis_client.hset(names.job("j"), "record", record)

    held = await claimed(queue)

    assert held.id == "j"
    assert held.record.rejection is not None
    assert held.record.rejection.code is Code.INTERNAL_ERROR


@pytest.mark.parametrize("name", ["do_not_record", "doNotRecord"])
async def test_of_a_record_that_cannot_be_read_it_still_holds_who_is_told_and_that_it_is_not_recorded(
    name: str, producer: Producer, queue: JobQueue, redis_client: Redis
) -> None:
    producer.enqueue(a_job("j"))
    wanted = {"assistant": "a/b/c", "webhook": "https://example.com/hook", name: True, "novelty": 1}
    await redis_client.hset(names.job("j"), "record", json.dumps({"id": "j", "job": wanted}))
    held = await claimed(queue)
    assert held.record.rejection is not None
    assert (held.record.job.webhook, held.record.job.do_not_record) == ("https://example.com/hook", True)
