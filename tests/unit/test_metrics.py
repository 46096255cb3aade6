"""Events become metrics, summed over real processes, and Redis is read when they are scraped."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import pytest
import redis
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from producer import Producer
from producer.lanes import Lanes
from schemas import names
from schemas.errors import InputError
from schemas.lane import Lane, LaneFault
from schemas.lane_limits import LaneLimits
from schemas.outcome import Code
from schemas.settings import Settings
from tests.given import a_job
from worker.events import (
    BatchEnded,
    Event,
    JobCrashed,
    JobEnded,
    JobSnoozed,
    JobsRecovered,
    JobStarted,
    LimiterWaited,
    OldRowsPruned,
    ProviderCalled,
    ServiceFault,
    StaleWorkRefused,
    ToolCalled,
    ToolCrashed,
    WebhookAttempted,
)
from worker.limits.turns import Turns
from worker.metrics import MAX_LABEL_VALUES, REST, Metrics
from worker.metrics_server import MAX_LANES_SHOWN, QueueCollector, registry_for

DEADLINE_S = 20
LANE = Lane("demo", "openai", "m1")
ONE_OF_EACH: tuple[Event, ...] = (
    JobStarted("j", "b", "demo", "demo/p/a", 1, 0.5, 3),
    LimiterWaited("j", "b", LANE, 2.5),
    ProviderCalled("j", "b", LANE, "ok", 200, 1.5, 70, 8, 250_000_000),
    ToolCalled("j", "b", "look", failed=True, duration_s=0.2),
    ToolCrashed("look", RuntimeError("no")),
    JobSnoozed("j", "b", "rate_limited", "429", 3.0),
    JobEnded("j", "b", "demo", "succeeded", None, 4.5, 1, 70, 8, 1),
    JobCrashed("j", "b", RuntimeError("no")),
    BatchEnded("b", "demo", "completed", {"succeeded": 1}),
    JobsRecovered(4),
    StaleWorkRefused("j", "b", "settle"),
    WebhookAttempted("d", "b", None, "batch.completed", "delivered", 200, 0.1),
    OldRowsPruned({"jobs": 3}),
    ServiceFault("sql", "away"),
)
EXPECTED = {
    'assistq_cost_total{model="m1",provider="openai"}': 0.25,
    'assistq_jobs_total{status="succeeded",workspace="demo"}': 1,
    'assistq_jobs_snoozed_total{code="rate_limited"}': 1,
    'assistq_job_duration_seconds_sum{status="succeeded"}': 4.5,
    'assistq_job_duration_seconds_count{status="succeeded"}': 1,
    'assistq_provider_calls_total{model="m1",outcome="ok",provider="openai"}': 1,
    'assistq_provider_call_duration_seconds_sum{model="m1",provider="openai"}': 1.5,
    'assistq_tokens_total{kind="prompt",model="m1",provider="openai"}': 70,
    'assistq_tokens_total{kind="completion",model="m1",provider="openai"}': 8,
    'assistq_limiter_waits_total{model="m1",provider="openai"}': 1,
    "assistq_limiter_wait_seconds_sum": 2.5,
    'assistq_webhook_attempts_total{event_type="batch.completed",outcome="delivered"}': 1,
    'assistq_tool_calls_total{outcome="failed"}': 1,
    "assistq_jobs_recovered_total": 4,
    "assistq_job_crashes_total": 1,
    'assistq_service_faults_total{part="sql"}': 1,
    "assistq_stale_work_refused_total": 1,
    "assistq_journal_steps_replayed_total": 3,
}


def samples_of(registry: CollectorRegistry) -> dict[str, float]:
    samples = {}
    for family in registry.collect():
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            samples[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return samples


def test_each_event_is_counted_under_its_name() -> None:
    assert {type(event) for event in ONE_OF_EACH} == set(get_args(Event))
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    for event in ONE_OF_EACH:
        metrics.on_event(event)
    samples = samples_of(registry)
    assert {name: samples.get(name) for name in EXPECTED} == EXPECTED


def test_too_many_workspaces_share_a_label_and_the_total_stays_right() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    for number in range(MAX_LABEL_VALUES + 50):
        metrics.on_event(JobEnded("j", None, f"w{number}", "failed", None, 1.0, 0, 0, 0, 1))
    jobs = {name: value for name, value in samples_of(registry).items() if name.startswith("assistq_jobs_total")}
    assert len(jobs) == MAX_LABEL_VALUES + 1
    assert jobs[f'assistq_jobs_total{{status="failed",workspace="{REST}"}}'] == 50
    assert sum(jobs.values()) == MAX_LABEL_VALUES + 50


# --- several processes ----------------------------------------------------------------------

EMIT = """
import sys
from tests.unit.test_metrics import ONE_OF_EACH
from worker.metrics import Metrics
metrics = Metrics()
for _ in range(int(sys.argv[1])):
    for event in ONE_OF_EACH:
        metrics.on_event(event)
"""
ROOT = Path(__file__).resolve().parents[2]


def environment(directory: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "PROMETHEUS_MULTIPROC_DIR": str(directory), **more}


def emit_from_processes(directory: Path, *rounds: int) -> None:
    running = [
        subprocess.Popen([sys.executable, "-c", EMIT, str(count)], env=environment(directory)) for count in rounds
    ]
    assert [process.wait(timeout=60) for process in running] == [0] * len(running)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "metrics"
    path.mkdir()
    return path


def nowhere(tmp_path: Path) -> str:
    return f"unix://{tmp_path / 'no.sock'}"


def test_the_sums_are_those_of_all_processes_also_after_they_ended(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    emit_from_processes(directory, 1, 2, 3)
    monkeypatch.setenv("ASSISTQ_REDIS_URL", nowhere(tmp_path))
    samples = samples_of(registry_for(str(directory), settings=Settings.from_env()))
    assert {name: samples.get(name) for name in EXPECTED} == {name: 6 * value for name, value in EXPECTED.items()}
    assert samples["assistq_redis_up"] == 0
    assert not [name for name in samples if name.startswith("assistq_queue")]


def test_without_the_directory_the_error_says_how_to_start(tmp_path: Path) -> None:
    for wrong in ("", str(tmp_path / "missing")):
        with pytest.raises(InputError, match="python -m worker"):
            registry_for(wrong, settings=Settings.from_env())


# --- what Redis holds -----------------------------------------------------------------------


@pytest.fixture
def client(valkey_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(valkey_url, decode_responses=True) as client:
        yield client


def put(client: redis.Redis, workspace: str, *, jobs: int, age_s: float) -> None:
    """Let jobs wait in a lane of their own, as if they had been enqueued long ago."""
    seconds, _ = client.time()
    producer = Producer(client)
    for number in range(jobs):
        id_ = f"{workspace}-{number}"
        producer.enqueue(a_job(id_, assistant=f"{workspace}/p/a"))
        client.hset(names.job(id_), "enqueued_ms", str(int((seconds - age_s + number) * 1000)))


def scrape(client: redis.Redis) -> dict[str, float]:
    registry = CollectorRegistry()
    registry.register(QueueCollector(client))
    return samples_of(registry)


def test_the_queue_is_read_from_redis(client: redis.Redis) -> None:
    put(client, "a", jobs=3, age_s=100)
    put(client, "b", jobs=2, age_s=500)
    Lanes(client).stop("pause", "lane", "c/openai/m1")
    client.zadd(names.LEASES, {"x": 1, "y": 2})
    client.zadd(names.SNOOZED, {"z": 1})
    fault = LaneFault(workspace="demo", code=Code.KEY_REFUSED, reason="401", since_ms=1, count=2)
    client.hset(names.FAULTS, mapping={"demo/openai/m1": fault.model_dump_json(), "demo/openai/m2": "{"})
    samples = scrape(client)
    assert samples["assistq_redis_up"] == 1
    assert samples['assistq_queue_jobs{state="waiting"}'] == 5
    assert samples['assistq_queue_jobs{state="running"}'] == 2
    assert samples['assistq_queue_jobs{state="snoozed"}'] == 1
    assert samples["assistq_queue_lanes"] == 3
    assert samples['assistq_lane_waiting_jobs{lane="?a/p/a@production",priority="interactive"}'] == 3
    assert samples['assistq_lane_paused{lane="c/openai/m1"}'] == 1
    assert samples['assistq_lane_faulted{code="key_refused",lane="demo/openai/m1"}'] == 1
    assert samples['assistq_lane_faulted{code="unreadable",lane="demo/openai/m2"}'] == 1
    assert 499 <= samples['assistq_lane_oldest_seconds{lane="?b/p/a@production"}'] <= 500 + DEADLINE_S


def test_the_use_of_a_lanes_quota_is_shown_while_it_has_calls(client: redis.Redis, valkey_url: str) -> None:
    async def use() -> None:
        async with Redis.from_url(valkey_url) as connection:
            turns = Turns(connection, process="p", hold_s=60)
            limits = LaneLimits(rpm=4, tpm=1000, shape="window")
            for number, tokens in enumerate((100, 400, 600)):
                await turns.ask(LANE, limits, ticket=f"j.{number}", tokens=tokens, owner="j")
            await turns.settle(LANE, "j.0", used_tokens=50, fault_over=False)

    asyncio.run(use())
    samples = scrape(client)
    assert samples[f'assistq_lane_quota_used_ratio{{kind="requests",lane="{LANE.key}"}}'] == 0.5
    assert samples[f'assistq_lane_quota_used_ratio{{kind="tokens",lane="{LANE.key}"}}'] == 0.45
    assert samples[f'assistq_lane_calls{{lane="{LANE.key}",state="in_flight"}}'] == 1


def test_an_empty_queue_is_zeros(client: redis.Redis) -> None:
    samples = scrape(client)
    assert samples["assistq_queue_lanes"] == 0
    assert samples['assistq_queue_jobs{state="waiting"}'] == 0


def test_only_the_longest_lanes_are_shown_and_all_are_counted(client: redis.Redis) -> None:
    for number in range(MAX_LANES_SHOWN + 5):
        put(client, f"w{number}", jobs=2 if number == 77 else 1, age_s=1)
    samples = scrape(client)
    shown = {name: value for name, value in samples.items() if name.startswith("assistq_lane_waiting_jobs")}
    assert len(shown) == 2 * MAX_LANES_SHOWN
    assert shown['assistq_lane_waiting_jobs{lane="?w77/p/a@production",priority="interactive"}'] == 2
    assert samples['assistq_queue_jobs{state="waiting"}'] == MAX_LANES_SHOWN + 6


def test_a_redis_that_answers_nothing_does_not_hold_a_scrape_for_long(directory: Path, monkeypatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        monkeypatch.setenv("ASSISTQ_REDIS_URL", f"redis://127.0.0.1:{mute.getsockname()[1]}")
        registry = registry_for(str(directory), settings=Settings.from_env())
        started = time.monotonic()
        assert samples_of(registry)["assistq_redis_up"] == 0
        assert time.monotonic() - started < 8


# --- the server, as Dramatiq runs it ----------------------------------------------------------

# As in the master of Dramatiq's command line: a daemonic child that runs the fork function.
FORK = """
import argparse, multiprocessing, sys
from dramatiq.cli import fork_process
from dramatiq.compat import StreamablePipe
read, write = multiprocessing.Pipe(duplex=False)
child = multiprocessing.get_context("fork").Process(
    target=fork_process,
    args=(argparse.Namespace(skip_logging=True, verbose=0), 0, "worker.metrics_server:serve", StreamablePipe(write)),
    daemon=True,
)
child.start()
write.close()
print(child.pid, flush=True)
while True:
    try:
        print(read.recv_bytes().decode(), end="", flush=True)
    except EOFError:
        break
child.join()
print("ended", child.exitcode, flush=True)
"""


class Served:
    """The master process, its fork, and what the fork logged."""

    def __init__(self, process: subprocess.Popen[str], pid: int) -> None:
        self.process = process
        self.pid = pid

    def line_with(self, text: str) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if text in line:
                return line
        raise AssertionError(f"the output ended without {text!r}")


@contextmanager
def served(directory: Path, **settings: str) -> Iterator[Served]:
    process = subprocess.Popen(
        [sys.executable, "-c", FORK], env=environment(directory, **settings), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    try:
        yield Served(process, pid)
    finally:
        for victim in (process.pid, pid):
            try:
                os.kill(victim, signal.SIGKILL)
            except ProcessLookupError:
                continue
        process.wait()
        process.stdout.close()


def get(address: str, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code, exc.read().decode()


def test_the_server_shows_the_sums_and_the_queue_on_a_port_that_it_tells(
    directory: Path, client: redis.Redis, valkey_url: str
) -> None:
    put(client, "demo", jobs=3, age_s=100)
    emit_from_processes(directory, 2, 1)
    with served(directory, ASSISTQ_METRICS_PORT="0", ASSISTQ_REDIS_URL=valkey_url) as server:
        line = json.loads(server.line_with("metrics_served"))
        address = (directory / "address").read_text().strip()
        assert line["address"] == f"http://{address}/metrics"
        assert re.fullmatch(r"127\.0\.0\.1:\d+", address)
        status, text = get(address, "/metrics")
        assert status == 200
        assert 'assistq_tokens_total{kind="prompt",model="m1",provider="openai"} 210.0' in text
        assert 'assistq_queue_jobs{state="waiting"} 3.0' in text
        emit_from_processes(directory, 1)
        assert "assistq_jobs_recovered_total 16.0" in get(address, "/metrics?x=1")[1]
        assert get(address, "/health")[0] == 200
        assert get(address, "/")[0] == 404

        os.kill(server.pid, signal.SIGTERM)
        started = time.monotonic()
        assert server.line_with("ended").split() == ["ended", "0"]
        assert time.monotonic() - started < 3
        assert not (directory / "address").exists()


def test_the_counters_are_shown_while_redis_is_away(directory: Path, tmp_path: Path) -> None:
    emit_from_processes(directory, 1)
    with served(directory, ASSISTQ_METRICS_PORT="0", ASSISTQ_REDIS_URL=nowhere(tmp_path)) as server:
        server.line_with("metrics_served")
        _, text = get((directory / "address").read_text().strip(), "/metrics")
        assert "assistq_redis_up 0.0" in text
        assert "assistq_jobs_recovered_total 4.0" in text


def test_a_taken_port_is_one_line_that_names_the_variable_and_the_process_stays(directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with served(directory, ASSISTQ_METRICS_PORT=str(port)) as server:
            line = json.loads(server.line_with("not served"))
            assert "ASSISTQ_METRICS_PORT" in line["event"]
            assert f"127.0.0.1:{port}" in line["event"]
            assert not (directory / "address").exists()
            os.kill(server.pid, signal.SIGTERM)
            assert server.line_with("Stopping fork process")  # it was still there to be told
            assert server.line_with("ended").split() == ["ended", "0"]


@pytest.mark.parametrize("port_taken", [False, True])
def test_the_server_ends_when_its_master_was_killed(directory: Path, port_taken: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1] if port_taken else 0
        with served(directory, ASSISTQ_METRICS_PORT=str(port)) as server:
            server.line_with("not served" if port_taken else "metrics_served")
            server.process.kill()
            assert server.process.stdout is not None
            # The server has inherited the pipe: its end is the end of both.
            assert "ended" not in server.process.stdout.read()
