"""The system under test as a user runs it, in a directory of its own, beside a simulated provider.

Nothing here outlives the benchmark: every process is on a leash (producer.embedded.child).
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, cast

import click
import httpx

from ops.bench.sim_limits import Quota
from producer.client import Producer
from producer.embedded.child import Child
from schemas.settings import Settings

ASSISTQ = Path(sys.executable).with_name("assistq")
STARTS_WITHIN_S = 60.0
STOPS_WITHIN_S = 60.0
_LOOK_EVERY_S = 0.1


class BenchError(click.ClickException):
    """A benchmark that could not be run, in words."""


class SimServer:
    """A simulated provider in a process of its own, as a context manager."""

    def __init__(self, quota: Quota, *options: str, latency_s: float = 0.0) -> None:
        """Take its limits, and further options of `sim_provider.py` as its command line has them."""
        self._command = [
            sys.executable,
            str(Path(__file__).with_name("sim_provider.py")),
            *("--shape", quota.shape, "--rpm", str(quota.rpm), "--tpm", str(quota.tpm)),
            *("--capacity-s", str(quota.capacity_s), "--latency-s", str(latency_s)),
            *options,
        ]
        self._client = httpx.Client(trust_env=False, timeout=30)
        self._child: Child | None = None
        self.base_url = ""

    def __enter__(self) -> Self:
        """Start it; BenchError if it does not come up."""
        lines: queue.Queue[str] = queue.Queue()
        self._child = Child(self._command, on_line=lines.put)
        try:
            self.base_url = lines.get(timeout=STARTS_WITHIN_S).strip()
        except queue.Empty:
            self.base_url = ""
        if not self.base_url.startswith("http://"):
            self.__exit__()
            raise BenchError("the simulated provider did not start: " + "\n".join([self.base_url, *lines.queue]))
        return self

    def __exit__(self, *exc: object) -> None:
        """Stop it."""
        self._client.close()
        if self._child is not None:
            self._child.stop(grace_s=STOPS_WITHIN_S)

    @property
    def pid(self) -> int:
        """Return its process id."""
        if self._child is None:
            raise BenchError("the simulated provider has not been started")
        return self._child.pid

    def report(self) -> dict[str, Any]:
        """Return `now_s` and the audits of all models (sim_audit.Audit.report)."""
        return cast("dict[str, Any]", self._client.get(self._url("/audit")).raise_for_status().json())

    def audit(self, model: str) -> dict[str, Any] | None:
        """Return the audit of one model; None if nothing has arrived for it."""
        return cast("dict[str, Any] | None", self.report()["models"].get(model))

    def reset(self) -> None:
        """Forget all that was served; limits are full again."""
        self._client.post(self._url("/reset")).raise_for_status()

    def _url(self, path: str) -> str:
        return self.base_url.removesuffix("/v1") + path


class Installation:
    """A directory with a data directory, and the settings of `assistq` there; nothing of the user's own."""

    def __init__(self, directory: Path, **settings: str) -> None:
        """Take further `ASSISTQ_…` variables by name."""
        self.directory = directory
        self.data_dir = directory / "data"
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("ASSISTQ_")}
        self.env |= {
            "ASSISTQ_DATA_DIR": str(self.data_dir),
            "ASSISTQ_METRICS_PORT": "0",
            "ASSISTQ_HTTP_PORT": "0",
            **settings,
        }
        self.settings = Settings(data_dir=self.data_dir)

    def start(self, *arguments: object) -> Child:
        """Start `assistq` with these arguments; its output goes to `log`."""
        return Child([str(ASSISTQ), *map(str, arguments)], env=self.env, log_file=self.log)

    @property
    def log(self) -> Path:
        """Return where the output of `assistq` is."""
        return self.directory / "assistq.log"

    @contextmanager
    def up(self, *, capacity_at_least: int = 1) -> Iterator[Producer]:
        """Run `assistq up`; yield a producer once workers can run so many jobs at once, else raise BenchError."""
        child = self.start("up")
        try:
            producer = self._connected(child)
            try:
                self._until(child, lambda: producer.capacity() >= capacity_at_least, what="the workers take jobs")
                yield producer
            finally:
                producer.close()
        finally:
            child.stop(grace_s=STOPS_WITHIN_S)

    def _connected(self, child: Child) -> Producer:
        socket = Path(self.settings.embedded_redis_url.removeprefix("unix://"))
        self._until(child, socket.exists, what="the queue is there")
        return Producer.from_settings(self.settings)

    def _until(self, child: Child, condition: Callable[[], bool], *, what: str) -> None:
        deadline_s = time.monotonic() + STARTS_WITHIN_S
        while not condition():
            if child.exit_code is not None or time.monotonic() > deadline_s:
                raise BenchError(f"not so within {STARTS_WITHIN_S:g} s: {what}\n" + "\n".join(child.last_lines()))
            time.sleep(_LOOK_EVERY_S)


@contextmanager
def installation(settings: Mapping[str, str]) -> Iterator[Installation]:
    """Yield an installation in a new directory, which is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="assistq-bench-", ignore_cleanup_errors=True) as directory:
        yield Installation(Path(directory), **settings)


def forget_own_settings() -> None:
    """Drop the user's `ASSISTQ_…` variables from this process: a benchmark measures what it says and no more."""
    for name in [name for name in os.environ if name.startswith("ASSISTQ_")]:
        del os.environ[name]


def heed_sigterm() -> None:
    """Let SIGTERM end this process as Ctrl-C does: what was started is stopped, directories are removed."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
