"""`python -m worker`: set the stage for Dramatiq's master process and become it.

The environment must be complete before the master's Python starts: Dramatiq and
prometheus_client read theirs when they are imported.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import redis

from schemas.errors import AssistqError
from schemas.lane_config import LaneConfig
from schemas.scripts import refusal_of_server
from schemas.settings import Settings

DEFAULT_IN_FLIGHT = 256
DEFAULT_PROCESSES_MAX = 4
# Dramatiq's threads only hand hints on.
DRAMATIQ_THREADS_MAX = 8
# Messages that a process holds before it has handed their hints on.
PREFETCH_MAX = 4
# How late an idle worker sees a hint, and how long its threads take to see that they shall end; Dramatiq's is 1 s.
IDLE_POLL_MS = 200
_ASK_TIMEOUT_S = 2.0


def main() -> None:
    """Replace this process by worker.master."""
    try:
        settings = Settings.from_env()
        # A wrong file is one error here, not one in each process.
        LaneConfig.load(settings)
    except AssistqError as exc:
        sys.exit(f"worker: {exc}")
    if not settings.provider_configured:
        sys.exit(
            "worker: no provider; set ASSISTQ_PROVIDER_BASE_URL (and ASSISTQ_PROVIDER_API_KEY), "
            "or the key of a service that hosts assistants, or let `assistq up` start the local model"
        )
    if refusal := _refusal_of_queue(settings):
        sys.exit(f"worker: {refusal}")
    processes = settings.processes or min(os.cpu_count() or 1, DEFAULT_PROCESSES_MAX)
    in_flight = settings.threads or DEFAULT_IN_FLIGHT
    threads = min(in_flight, DRAMATIQ_THREADS_MAX)
    environment = {
        **os.environ,
        "PROMETHEUS_MULTIPROC_DIR": str(_metrics_dir(settings)),
        "ASSISTQ_THREADS": str(in_flight),
        # A process that runs few jobs holds no hint that another could run.
        "dramatiq_queue_prefetch": str(max(1, min(in_flight // 32, PREFETCH_MAX))),
        "dramatiq_worker_timeout": str(IDLE_POLL_MS),
    }
    command = [sys.executable, "-m", "worker.master", str(processes), str(threads)]
    os.execve(sys.executable, command, environment)  # noqa: S606 - our own interpreter, no shell


def _refusal_of_queue(settings: Settings) -> str | None:
    """Return why no worker can run on this Redis; None if it can, or does not answer yet: workers wait for it."""
    with redis.Redis.from_url(
        settings.effective_redis_url, socket_connect_timeout=_ASK_TIMEOUT_S, socket_timeout=_ASK_TIMEOUT_S
    ) as connection:
        try:
            return refusal_of_server(connection.info("server"))
        except redis.RedisError:
            return None


def _metrics_dir(settings: Settings) -> Path:
    """Return a new directory for this worker's metrics; those of workers that ended are removed.

    It is named by this process's id, which the master that replaces it keeps.
    """
    parent = settings.data_dir / "metrics"
    parent.mkdir(parents=True, exist_ok=True)
    for directory in parent.iterdir():
        if not Path(f"/proc/{directory.name}").exists() or directory.name == str(os.getpid()):
            shutil.rmtree(directory, ignore_errors=True)
    directory = parent / str(os.getpid())
    directory.mkdir()
    return directory


if __name__ == "__main__":
    main()
