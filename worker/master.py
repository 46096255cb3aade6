"""Dramatiq's master process: `python -m worker.master PROCESSES THREADS`, started by `python -m worker`."""

from __future__ import annotations

import sys

from dramatiq.cli import main as dramatiq_main
from dramatiq.cli import make_argument_parser

from schemas import names
from schemas.settings import Settings
from worker import logs

# Calls in flight at a shutdown may still end, and are paid for: give them this long.
SHUTDOWN_TIMEOUT_S = 30


def main(processes: str, threads: str) -> int:
    """Run the workers and the metrics server until a signal; return Dramatiq's exit status."""
    logs.configure(Settings.from_env())
    arguments = [
        "worker.app:broker",
        f"--processes={processes}",
        f"--threads={threads}",
        f"--worker-shutdown-timeout={SHUTDOWN_TIMEOUT_S * 1000}",
        "--skip-logging",
        "--fork-function=worker.metrics_server:serve",
        "--queues",
        names.JOBS_QUEUE,
        names.WEBHOOKS_QUEUE,
    ]
    return int(dramatiq_main(make_argument_parser().parse_args(arguments)) or 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
