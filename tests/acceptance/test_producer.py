"""Application code: a process that knows a Redis URL and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import redis

from producer import Producer
from schemas import InvokeJob
from tests.command_line import Installation
from tests.loopback_provider import LoopbackProvider

ROOT = Path(__file__).resolve().parents[2]

EXAMPLE = """
import json
from producer import Producer
from schemas import InvokeJob, OutputSpec

producer = Producer.from_env()
handle = producer.enqueue(InvokeJob(assistant="demo/reviews/sentiment", variables={"review": "Superb, so good."}))
output = handle.result(timeout_s=60).output

jobs = (
    InvokeJob(
        assistant="demo/reviews/sentiment",
        variables={"review": f"a good one, no {number}"},
        output=OutputSpec(type="enum", enum=["good", "bad"]),
    )
    for number in range(30)
)
batch = producer.enqueue_many(jobs)
ended = batch.wait(timeout_s=60)
print(json.dumps({"output": output, "batch": ended.model_dump(mode="json")}))
"""

# Prints the peak of memory while so many jobs were enqueued, in bytes.
ENQUEUE = """
import sys, tracemalloc
from producer import Producer
from schemas import InvokeJob

producer = Producer.from_env()

def enqueue(count):
    jobs = (
        InvokeJob(assistant="demo/reviews/sentiment", variables={"review": f"{number} " + "x" * 200})
        for number in range(count)
    )
    producer.enqueue_many(jobs, batch_id=f"batch-{count}")

enqueue(600)  # what is loaded and connected once
tracemalloc.start()
enqueue(int(sys.argv[1]))
print(tracemalloc.get_traced_memory()[1])
"""


# Prints what the command prints, and then the largest size that the process had, as Linux counts it.
COMMAND = """
import atexit
from pathlib import Path
from producer.cli.main import main

def peak():
    print(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")))

atexit.register(peak)
main()
"""


def submitted(shell: Installation, *arguments: str, redis_url: str) -> tuple[str, int]:
    """Run a command that prints a batch id, and return that and the peak of its memory, in bytes."""
    env = {**shell.env, "ASSISTQ_REDIS_URL": redis_url, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", COMMAND, *arguments]
    done = subprocess.run(
        command, env=env, cwd=shell.directory, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    batch_id, peak = done.stdout.splitlines()
    return batch_id, int(peak.split()[1]) * 1024


def application(code: str, *arguments: str, redis_url: str, directory: Path) -> Any:
    """Run application code in a process that has no other setting, and return what it prints."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("ASSISTQ_")}
    env |= {"ASSISTQ_REDIS_URL": redis_url, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, env=env, cwd=directory, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert not list(directory.iterdir()), "it made files"
    return json.loads(done.stdout)


def test_the_example_works_while_up_runs_on_the_same_urls_and_nothing_is_embedded(
    shell: Installation,
    provider: LoopbackProvider,
    valkey_url: str,
    postgres_url: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    shell.env |= {"ASSISTQ_REDIS_URL": valkey_url, "ASSISTQ_DATABASE_URL": postgres_url}
    assert shell.run("assistants", "apply", shell.sentiment()).code == 0
    up = shell.start("up")
    said = application(EXAMPLE, redis_url=valkey_url, directory=tmp_path_factory.mktemp("application"))
    assert said["output"] == "positive"
    assert said["batch"]["state"] == "completed"
    assert said["batch"]["counts"] == {"succeeded": 30}
    results = shell.run("results", said["batch"]["batch_id"])
    assert results.out.count(",succeeded,good,") == 30
    assert provider.count == 31

    ended = shell.run("submit", shell.reviews(20), "--assistant", shell.sentiment())
    assert ended.code == 0, ended.err
    watched = shell.run("status", ended.out.strip(), "--watch", "--json")
    assert watched.json["counts"] == {"succeeded": 20}
    assert provider.count == 51
    assert "configured by ASSISTQ_REDIS_URL" in up.err
    assert "configured by ASSISTQ_DATABASE_URL" in up.err
    assert not (shell.data_dir / "valkey").exists()
    assert not list(shell.data_dir.glob("*.db"))
    up.process.terminate()
    assert up.ended().code == 143
    shell.nothing_left()


def test_large_jobs_are_sent_in_chunks_of_few(valkey_url: str) -> None:
    large = InvokeJob(assistant="demo/reviews/sentiment", variables={"review": "x" * 300_000})
    with redis.Redis.from_url(valkey_url, decode_responses=True) as client:
        client.config_resetstat()
        Producer(client).enqueue_many([large] * 12, batch_id="large")
        assert client.hget("aq:batch:large", "total") == "12"
        calls = client.info("commandstats")["cmdstat_evalsha"]["calls"]
        client.flushall()
    assert calls >= 3 + 1  # four jobs of 300 kB each, and the seal


def test_enqueue_many_sends_chunks_and_holds_only_a_few_of_them(valkey_url: str, tmp_path: Path) -> None:
    count = 50_000
    with redis.Redis.from_url(valkey_url, decode_responses=True) as client:
        client.config_resetstat()
        peak_bytes = application(ENQUEUE, str(count), redis_url=valkey_url, directory=tmp_path)
        assert client.hget(f"aq:batch:batch-{count}", "total") == str(count)
        calls = client.info("commandstats")["cmdstat_evalsha"]["calls"]
    # 500 jobs a call; and for 600 jobs before, and the two seals
    assert calls <= count / 500 + 2 + 2 + 2
    # at most 9 chunks of jobs that take some 600 bytes each; the texts of all of them would be 10 MB
    assert peak_bytes < 6_000_000


def test_a_file_of_any_length_is_submitted_in_the_same_memory(
    shell: Installation, valkey_url: str, tmp_path: Path
) -> None:
    peaks = {}
    with redis.Redis.from_url(valkey_url, decode_responses=True) as client:
        for count in (10_000, 100_000):
            arguments = ("submit", str(shell.reviews(count)), "--assistant", str(shell.sentiment()))
            batch_id, peaks[count] = submitted(shell, *arguments, redis_url=valkey_url)
            assert client.hget(f"aq:batch:{batch_id}", "total") == str(count)
            client.flushall()
    # 100 bytes kept of each row would be 9 MB
    assert peaks[100_000] - peaks[10_000] < 6_000_000
