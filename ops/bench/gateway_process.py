"""The gateway, in a process of its own or that of an installation, a key for it, and what the process holds."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import psutil

from ops.bench.overhead import until
from ops.bench.stack import STARTS_WITHIN_S, STOPS_WITHIN_S, BenchError, Installation
from producer.embedded.child import Child
from producer.gateway.keys import ApiKeys
from schemas.database import engine_for, ensure_tables

_LISTENS = '"event": "gateway_listening"'
_LOOK_EVERY_S = 0.1
_OPEN_REQUESTS = "assistq_http_open_requests "


@dataclass(frozen=True, slots=True)
class GatewayProcess:
    """The running gateway."""

    url: str
    pid: int

    @property
    def address(self) -> tuple[str, int]:
        """Return host and port."""
        host, port = self.url.removeprefix("http://").rsplit(":", 1)
        return host, int(port)

    def memory_mb(self) -> float:
        """Return what it has in memory (RSS), in MB."""
        return round(float(psutil.Process(self.pid).memory_info().rss) / 1e6, 1)

    def files(self) -> int:
        """Return how many file descriptors it has open."""
        return int(psutil.Process(self.pid).num_fds())

    def cpu_s(self) -> float:
        """Return the processor time that it has used, in seconds."""
        times = psutil.Process(self.pid).cpu_times()
        return float(times.user + times.system)

    def open_requests(self) -> int:
        """Return how many requests it has not answered to the end."""
        text = httpx.get(f"{self.url}/metrics", timeout=60, trust_env=False).raise_for_status().text
        return next(int(float(line.split()[1])) for line in text.splitlines() if line.startswith(_OPEN_REQUESTS))


@contextmanager
def served(installed: Installation) -> Iterator[GatewayProcess]:
    """Run the gateway meanwhile."""
    log = installed.directory / "gateway.log"
    # The leash is that process: it becomes the command.
    child = Child([sys.executable, "-m", "producer.gateway"], env=installed.env, log_file=log)

    def said() -> str:
        return log.read_text("utf-8") if log.exists() else ""

    try:
        until(lambda: _LISTENS in said(), what="the gateway listens", child=child)
        told = next(json.loads(line) for line in said().splitlines() if _LISTENS in line)
        yield GatewayProcess(told["url"], child.pid)
    finally:
        child.stop(grace_s=STOPS_WITHIN_S)


def of_up(installed: Installation) -> GatewayProcess:
    """Return the gateway that `assistq up` runs: where there is no other one, it works on all batches."""

    def urls() -> list[str]:
        lines = installed.log.read_text("utf-8").splitlines() if installed.log.exists() else []
        return [json.loads(line[line.index("{") :])["url"] for line in lines if _LISTENS in line]

    deadline_s = time.monotonic() + STARTS_WITHIN_S
    while not urls():
        if time.monotonic() > deadline_s:
            raise BenchError(f"the gateway does not listen:\n{installed.log.read_text('utf-8')}")
        time.sleep(_LOOK_EVERY_S)
    url = urls()[0]
    port = int(url.rsplit(":", 1)[1])
    listening = (each for each in psutil.net_connections("tcp") if each.status == psutil.CONN_LISTEN)
    return GatewayProcess(url, next(each.pid for each in listening if each.pid and tuple(each.laddr)[1:] == (port,)))


def key_of(installed: Installation, workspace: str, *, database_url: str | None = None) -> str:
    """Return a new key of the workspace, which may do all, as its owner sends it."""
    engine = engine_for(database_url or installed.settings.effective_database_url)
    try:
        ensure_tables(engine)
        return ApiKeys(engine).create(workspace).text
    finally:
        engine.dispose()
