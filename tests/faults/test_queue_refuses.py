"""The queue's server is there and refuses: its memory or disk is full, or it is a replica for a while."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from schemas import Status, names
from schemas.errors import QueueFull
from tests.at_work import PROCESSES, THREADS, Scene, Works
from tests.command_line import Installation
from tests.loopback_provider import LoopbackProvider, Reply, default_reply
from tests.processes import until
from tests.servers import OwnValkey

ROWS = 60
IN_FLIGHT = PROCESSES * THREADS

Refusing = Callable[[OwnValkey], AbstractContextManager[None]]


@pytest.fixture
def works(tmp_path: Path, servers_dir: Path) -> Iterator[Works]:
    with Works(tmp_path, servers_dir=servers_dir) as works:
        # With `always` a Valkey that cannot write ends itself.
        works.queue.client.config_set("appendfsync", "everysec")
        yield works


@pytest.mark.parametrize("refusing", [OwnValkey.memory_full, OwnValkey.disk_full, OwnValkey.read_only])
def test_replies_that_come_while_the_queue_refuses_are_kept_and_the_rest_goes_on_when_it_no_longer_does(
    works: Works, refusing: Refusing
) -> None:
    scene, gate = Scene(works), threading.Event()
    scene.assistant()
    scene.plays(lambda _body, _n: Reply(text="positive", hold=gate))
    batch = works.producer.enqueue_many([scene.job(f"row {number}") for number in range(ROWS)], batch_id="b")
    works.provider.wait_for_requests(IN_FLIGHT, deadline_s=60)
    with refusing(works.queue):
        gate.set()
        # The replies have arrived, and their workers have been refused something.
        until(lambda: works.provider.in_flight == 0, what="the provider has answered")
        until(lambda: works.logged("service_fault"), what="the workers have met the refusal")
    assert batch.wait(timeout_s=100).counts == {Status.SUCCEEDED: ROWS}
    asked = [request["messages"][-1]["content"] for request in scene.asked]
    assert sorted(asked) == sorted(f"row {number}" for number in range(ROWS))
    assert not works.redis.exists(names.LEASES, names.PLACES)


def test_rows_that_a_full_queue_refused_are_taken_later_and_none_of_them_twice(
    tmp_path: Path, servers_dir: Path
) -> None:
    rows = 40_000
    with (
        OwnValkey(servers_dir / "full") as queue,
        LoopbackProvider(default_reply) as provider,
        Installation(
            tmp_path, ASSISTQ_REDIS_URL=queue.url, ASSISTQ_PROVIDER_BASE_URL=provider.base_url
        ) as installation,
    ):
        used = int(queue.client.info("memory")["used_memory"])
        queue.client.config_set("maxmemory", used + 12_000_000)
        command = ("submit", installation.reviews(rows), "--assistant", installation.sentiment(), "--json")
        ended = installation.run(*command)
        ended.refused("the queue's memory is full (maxmemory)", "make room", "rows of batch", "were taken")
        (batch,) = [key.decode() for key in queue.client.zrange(names.BATCHES, 0, -1)]
        taken = int(queue.client.hget(names.batch(batch), "enqueued") or 0)
        assert 0 < taken < rows
        assert f"{taken} rows of batch {batch} were taken" in ended.err
        # No chunk was cut in the middle: what was counted is there, with its bit and its place in a line.
        assert queue.client.bitcount(names.batch_rows(batch)) == taken
        lines = [line.decode() for line in queue.client.smembers(names.batch_lines(batch))]
        assert sum(int(queue.client.llen(names.line(line))) for line in lines) == taken
        assert len(list(queue.client.scan_iter(names.job("*"), count=10_000))) == taken

        queue.client.config_set("maxmemory", 0)
        assert installation.run(*command).code == 0
        counts = queue.client.hgetall(names.batch(batch))
        assert (int(counts[b"total"]), int(counts[b"enqueued"])) == (rows, rows)
        assert len(list(queue.client.scan_iter(names.job("*"), count=10_000))) == rows


def test_a_single_job_that_a_full_queue_refuses_leaves_nothing_there(works: Works) -> None:
    scene = Scene(works)
    scene.assistant()
    for refusing in (works.queue.memory_full, works.queue.disk_full):
        with refusing(), pytest.raises(QueueFull):
            works.producer.enqueue(scene.job("once", id="j"))
        assert not works.redis.exists(names.job("j"))
    assert works.producer.enqueue(scene.job("once", id="j")).result(timeout_s=60).succeeded
    assert len(scene.asked) == 1
