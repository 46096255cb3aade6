"""`python -m worker` as it is deployed: real processes over real Valkey, SQLite and HTTP."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import redis
from prometheus_client.parser import text_string_to_metric_families
from sqlmodel import Session, select

from producer import Producer
from schemas import OutputSpec, Status, names
from schemas.database import engine_for, ensure_tables
from schemas.tables import Job
from tests.given import a_config, a_job, store_assistant
from tests.loopback_provider import LoopbackProvider, Reply, answers, default_reply, hang_until
from tests.processes import alive_in_group, is_alive, until

PROCESSES, THREADS = 2, 4
IN_FLIGHT = PROCESSES * THREADS
KEY = "sk-CANARY-7b1f"
DEADLINE_S = 40


class Worker:
    """A `python -m worker` in a session of its own."""

    def __init__(self, env: dict[str, str], *, log: Path) -> None:
        self.log = log
        self.redis_url = env["ASSISTQ_REDIS_URL"]
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "worker"], env=env, stderr=stderr, start_new_session=True
            )
        self.data_dir = Path(env["ASSISTQ_DATA_DIR"])

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def worker_pids(self) -> list[int]:
        """Return the processes that say they run jobs: each names itself in Redis by host, pid and a number."""
        with redis.Redis.from_url(self.redis_url) as client:
            named = {int(name.split(b":")[-2]) for name in client.hkeys(names.WORKERS)}
        return sorted(named & set(alive_in_group(self.pid)))

    def metrics(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        """Return what `/metrics` says now."""
        address = (self.data_dir / "metrics" / str(self.pid) / "address").read_text().strip()
        text = httpx.get(f"http://{address}/metrics").raise_for_status().text
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def total(self, name: str, **labels: str) -> float:
        """Return the sum of the metric's samples that have these labels."""
        return sum(
            value
            for (sample, sample_labels), value in self.metrics().items()
            if sample == f"assistq_{name}" and set(labels.items()) <= set(sample_labels)
        )

    def lines(self) -> list[dict[str, Any]]:
        """Return its log; every line must be JSON."""
        return [json.loads(line) for line in self.log.read_text("utf-8").splitlines()]

    def wait(self) -> int:
        return self.process.wait(DEADLINE_S)

    def leaves_nobody(self) -> None:
        until(lambda: not alive_in_group(self.pid), what="all of its processes end", timeout_s=DEADLINE_S)

    def kill(self) -> None:
        for pid in alive_in_group(self.pid):
            os.kill(pid, signal.SIGKILL)
        self.process.wait(DEADLINE_S)


Start = Callable[..., Worker]


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """SQLite alone: PostgreSQL makes no difference to processes."""
    engine = engine_for(sqlite_url)
    ensure_tables(engine)
    store_assistant(engine, a_config(output=OutputSpec(type="enum", enum=("positive", "negative"))))
    engine.dispose()
    return sqlite_url


@pytest.fixture
def start(
    tmp_path: Path, valkey_url: str, database_url: str, producer: Producer, loopback_provider: LoopbackProvider
) -> Iterator[Start]:
    """Starts workers, each ready when it is returned, and ends them."""
    started: list[Worker] = []
    env = {
        **os.environ,
        "ASSISTQ_REDIS_URL": valkey_url,
        "ASSISTQ_DATABASE_URL": database_url,
        "ASSISTQ_PROVIDER_BASE_URL": loopback_provider.base_url,
        "ASSISTQ_PROVIDER_API_KEY": KEY,
        "ASSISTQ_RPM": "100000",
        "ASSISTQ_TPM": "100000000",
        "ASSISTQ_METRICS_PORT": "0",
        "ASSISTQ_LOG_LEVEL": "DEBUG",
    }

    def start(processes: int = PROCESSES, threads: int = THREADS) -> Worker:
        own = {**env, "ASSISTQ_PROCESSES": str(processes), "ASSISTQ_THREADS": str(threads)}
        worker = Worker(own, log=tmp_path / f"worker-{len(started)}.log")
        started.append(worker)
        ready = worker.data_dir / "metrics" / str(worker.pid) / "address"
        until(
            lambda: (len(worker.worker_pids) == processes and ready.exists()) or worker.process.poll() is not None,
            what="the worker is ready",
            timeout_s=DEADLINE_S,
        )
        assert worker.process.poll() is None, worker.log.read_text()
        return worker

    yield start
    for worker in started:
        worker.kill()


@pytest.fixture
def rows(database_url: str) -> Callable[[], list[Job]]:
    def rows() -> list[Job]:
        engine = engine_for(database_url)
        with Session(engine) as session:
            found = list(session.exec(select(Job)))
        engine.dispose()
        return found

    return rows


def holds_the_first(n: int, go: threading.Event) -> Callable[[Any, int], Reply]:
    """Return a script that answers the first n requests when `go` is set."""
    return lambda body, number: (
        hang_until(go, then=default_reply(body, number)) if number <= n else default_reply(body, number)
    )


def test_jobs_run_in_all_processes_and_metrics_and_logs_tell_of_all_of_them(
    start: Start, producer: Producer, loopback_provider: LoopbackProvider, rows: Callable[[], list[Job]]
) -> None:
    go = threading.Event()
    loopback_provider.script(holds_the_first(IN_FLIGHT, go))
    worker = start()
    batch = producer.enqueue_many([a_job(custom_id=f"row {row}") for row in range(40)], batch_id="b")
    loopback_provider.wait_for_requests(IN_FLIGHT, deadline_s=DEADLINE_S)
    assert worker.total("queue_jobs") == 40
    go.set()
    ended = batch.wait(timeout_s=DEADLINE_S)
    assert ended.counts == {Status.SUCCEEDED: 40}
    assert loopback_provider.count == len(rows()) == 40
    assert loopback_provider.peak_in_flight == IN_FLIGHT

    assert worker.total("jobs_total", status="succeeded", workspace="acme") == 40
    assert worker.total("jobs_total") == 40
    assert worker.total("provider_calls_total", outcome="ok", model="m1") == 40
    assert worker.total("tokens_total", kind="prompt") == sum(row.prompt_tokens for row in rows())
    assert worker.total("tokens_total", kind="completion") == sum(row.completion_tokens for row in rows())
    assert worker.total("job_duration_seconds_count") == 40
    assert worker.total("queue_jobs") == 0
    assert worker.total("redis_up") == 1

    until(lambda: any(line["event"] == "batch_ended" for line in worker.lines()), what="the log tells of the end")
    lines = worker.lines()
    told = [line for line in lines if line["event"] == "job_ended"]
    assert {(line["job_id"], line["batch_id"], line["status"]) for line in told} == {
        (f"b.{row}", "b", "succeeded") for row in range(40)
    }
    for event in ("job_started", "provider_called"):
        assert {line["job_id"] for line in lines if line["event"] == event} == {f"b.{row}" for row in range(40)}
    assert [line["batch_id"] for line in lines if line["event"] == "batch_ended"] == ["b"]
    assert all({"ts", "level", "event"} <= set(line) for line in lines)
    assert not [line for line in lines if line["level"] in ("warning", "error", "critical")]
    assert "CANARY" not in worker.log.read_text()
    assert loopback_provider.requests[0].headers["authorization"] == f"Bearer {KEY}"


def no_places(client: redis.Redis) -> bool:
    """Return whether no process offers to run a job."""
    return all(value.startswith(b"0 ") for value in cast("dict[bytes, bytes]", client.hgetall(names.WORKERS)).values())


def test_one_process_has_256_calls_in_flight(
    start: Start, producer: Producer, loopback_provider: LoopbackProvider, rows: Callable[[], list[Job]]
) -> None:
    go, calls = threading.Event(), 256
    loopback_provider.script(holds_the_first(calls, go))
    start(processes=1, threads=320)  # a tenth of the places is kept for other workspaces
    batch = producer.enqueue_many([a_job()] * 300, batch_id="b")
    loopback_provider.wait_for_requests(calls, deadline_s=DEADLINE_S)
    go.set()
    assert batch.wait(timeout_s=DEADLINE_S).counts == {Status.SUCCEEDED: 300}
    assert loopback_provider.peak_in_flight >= calls
    assert loopback_provider.count == len(rows()) == 300


def test_sigterm_lets_calls_in_flight_finish_begins_no_other_and_leaves_nobody(
    start: Start, producer: Producer, loopback_provider: LoopbackProvider, valkey_url: str
) -> None:
    go = threading.Event()
    loopback_provider.script(holds_the_first(IN_FLIGHT, go))
    worker = start()
    batch = producer.enqueue_many([a_job()] * 40, batch_id="b")
    loopback_provider.wait_for_requests(IN_FLIGHT, deadline_s=DEADLINE_S)
    os.kill(worker.pid, signal.SIGTERM)
    with redis.Redis.from_url(valkey_url) as client:
        until(lambda: no_places(client), what="the processes offer no place any more", timeout_s=DEADLINE_S)
        go.set()
        assert worker.wait() == 0
        worker.leaves_nobody()
        assert loopback_provider.count == IN_FLIGHT
        told = batch.status()
        assert told is not None
        assert told.counts == {Status.SUCCEEDED: IN_FLIGHT}
        running = [key for key in client.keys(names.job("*")) if client.hget(key, "state") == b"running"]
        assert running == []
    assert not (worker.data_dir / "metrics" / str(worker.pid) / "address").exists()
    assert not [line for line in worker.lines() if line["level"] in ("error", "critical")]


def test_after_kill_9_of_a_process_another_worker_finishes_and_no_more_is_asked_than_was_in_flight(
    start: Start,
    producer: Producer,
    loopback_provider: LoopbackProvider,
    valkey_url: str,
    rows: Callable[[], list[Job]],
) -> None:
    go = threading.Event()
    loopback_provider.queue(*[answers("positive")] * 10)
    loopback_provider.script(holds_the_first(10 + IN_FLIGHT, go))
    worker = start()
    batch = producer.enqueue_many([a_job()] * 40, batch_id="b")
    loopback_provider.wait_for_requests(10 + IN_FLIGHT, deadline_s=DEADLINE_S)
    killed = worker.worker_pids[0]
    os.kill(killed, signal.SIGKILL)
    until(lambda: not is_alive(killed), what="the process is dead")
    go.set()
    assert worker.wait() != 0, "somebody is to start it again"
    worker.leaves_nobody()
    assert len(rows()) <= 40 - THREADS

    with redis.Redis.from_url(valkey_url) as client:  # as late as the end of every lease
        for job_id in client.zrange(names.LEASES, 0, -1):
            client.zadd(names.LEASES, {job_id: 1})
    second = start()
    assert batch.wait(timeout_s=DEADLINE_S).counts == {Status.SUCCEEDED: 40}
    assert len(rows()) == 40
    assert 40 < loopback_provider.count <= 40 + THREADS
    assert second.total("jobs_recovered_total") >= THREADS


def test_kill_9_of_the_master_leaves_nobody(
    start: Start, producer: Producer, loopback_provider: LoopbackProvider
) -> None:
    loopback_provider.queue(hang_until(threading.Event()))
    worker = start()
    producer.enqueue(a_job("j"))
    loopback_provider.wait_for_requests(1, deadline_s=DEADLINE_S)
    assert len(alive_in_group(worker.pid)) >= 1 + PROCESSES
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    worker.leaves_nobody()


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({}, "no provider; set ASSISTQ_PROVIDER_BASE_URL"),
        ({"ASSISTQ_PROVIDER_BASE_URL": "http://127.0.0.1:1", "ASSISTQ_RPM": "0"}, "ASSISTQ_RPM: "),
        ({"ASSISTQ_PROVIDER_BASE_URL": "http://127.0.0.1:1", "ASSISTQ_PROVIDER_API_KEY": "sk-CANARY 2"}, "_API_KEY: "),
    ],
)
def test_a_worker_that_cannot_work_says_why_in_one_line(setting: dict[str, str], says: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "worker"],
        env={**os.environ, **setting},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("worker: ")
    assert says in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert "CANARY" not in ended.stderr
