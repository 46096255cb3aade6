"""An enqueue that returned is on the server's disk."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis

from producer import Producer
from schemas import names
from schemas.errors import ProducerError
from tests.given import a_job
from tests.processes import until
from tests.servers import OwnValkey

KILLS = 8
_numbers = itertools.count(1)


@pytest.fixture
def queue(servers_dir: Path) -> Iterator[OwnValkey]:
    with OwnValkey(servers_dir / f"acknowledged-{next(_numbers)}") as queue:
        yield queue


def test_no_acknowledged_job_is_lost_when_the_server_is_killed_at_any_moment(queue: OwnValkey) -> None:
    acknowledged: list[str] = []
    over, chance = threading.Event(), random.Random(1)  # noqa: S311 - no secret

    def enqueue(thread: int) -> None:
        producer = Producer(redis.Redis.from_url(queue.url))
        for number in range(1_000_000):
            if over.is_set():
                break
            try:
                acknowledged.append(producer.enqueue(a_job(id=f"t{thread}.{number}")).id)
            except ProducerError:
                continue
        producer.close()

    with ThreadPoolExecutor(16) as threads:
        enqueuing = [threads.submit(enqueue, thread) for thread in range(16)]
        try:
            for _ in range(KILLS):
                more = len(acknowledged) + chance.randrange(1, 60)
                until(lambda more=more: len(acknowledged) >= more, what="jobs are acknowledged")  # type: ignore[misc]
                queue.kill()
                queue.start()
        finally:
            over.set()
    for done in enqueuing:
        done.result()
    lost = [job_id for job_id in acknowledged if not queue.client.exists(names.job(job_id))]
    assert lost == []


def test_an_enqueue_waits_for_a_slow_disk(queue: OwnValkey) -> None:
    producer = Producer(redis.Redis.from_url(queue.url))
    # Nothing is flushed, until it is again.
    queue.client.config_set("appendfsync", "no")
    with ThreadPoolExecutor(1) as thread:
        enqueued = thread.submit(producer.enqueue, a_job(id="slow"))
        # Each try writes the job, and a word to wait for.
        until(lambda: queue.calls("evalsha") >= 4, what="it asks again")
        assert not enqueued.done()
        queue.client.config_set("appendfsync", "everysec")
        assert enqueued.result(30).id == "slow"
    producer.close()


def test_what_is_not_confirmed_in_time_is_an_error_and_may_be_sent_again(queue: OwnValkey) -> None:
    producer = Producer(redis.Redis.from_url(queue.url), flush_within_s=0.5)
    queue.client.config_set("appendfsync", "no")
    for _ in range(2):
        # Also where everything is there already, and on a new connection.
        with pytest.raises(ProducerError, match="not confirmed that they are on its disk"):
            producer.enqueue(a_job(id="j"))
        with pytest.raises(ProducerError, match="send them again under the same ids"):
            producer.enqueue_many([a_job()] * 3, batch_id="b")
        producer.close()
    queue.client.config_set("appendfsync", "everysec")
    assert producer.enqueue(a_job(id="j")).id == "j"
    batch = producer.enqueue_many([a_job()] * 3, batch_id="b")
    status = batch.status()
    assert status is not None
    assert (status.total, status.enqueued) == (3, 3)
    producer.close()


def test_a_batch_of_which_the_server_lost_rows_is_not_closed(queue: OwnValkey) -> None:
    producer = Producer(redis.Redis.from_url(queue.url))

    def rows() -> Iterator[object]:
        for number in range(2_000):
            yield a_job()
            if number == 1_500:
                until(lambda: queue.client.exists(names.job("b.499")), what="the first rows are there")
                # As a server that died and came back without what it had not yet written.
                queue.client.flushall()

    with pytest.raises(ProducerError, match=r"the server lost \d+ rows of batch b.* send the same rows again"):
        producer.enqueue_many(rows(), batch_id="b")  # type: ignore[arg-type]
    batch = producer.enqueue_many([a_job()] * 2_000, batch_id="b")
    status = batch.status()
    assert status is not None
    assert (status.total, status.enqueued) == (2_000, 2_000)
    producer.close()


def test_a_server_that_writes_no_file_is_told_of_once_and_waited_for_never(
    queue: OwnValkey, caplog: pytest.LogCaptureFixture
) -> None:
    queue.client.config_set("appendonly", "no")
    producer = Producer(redis.Redis.from_url(queue.url))
    producer.enqueue(a_job())
    producer.enqueue(a_job())
    assert [record.message.count("may be lost") for record in caplog.records] == [1]
    producer.close()
