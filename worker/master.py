"""Dramatiq's master process: `python -m worker.master PROCESSES DRAMATIQ_THREADS`, started by `python -m worker`."""

from __future__ import annotations

import sys

from dramatiq.cli import main as dramatiq_main
from dramatiq.cli import make_argument_parser

from schemas import names
from schemas.settings import Settings
from worker import logs

# How long Dramatiq's threads may take to hand on what they hold. The calls in flight are no longer theirs:
# worker.app waits for those.
HAND_ON_TIMEOUT_MS = 30_000


def main(processes: str, threads: str) -> int:
    """Run the workers and the metrics server until a signal; return Dramatiq's exit status."""
    logs.configure(Settings.from_env())
    arguments = [
        "worker.app:broker",
        f"--processes={processes}",
        f"--threads={threads}",
        f"--worker-shutdown-timeout={HAND_ON_TIMEOUT_MS}",
        "--skip-logging",
        "--fork-function=worker.metrics_server:serve",
        "--queues",
        names.JOBS_QUEUE,
        names.WEBHOOKS_QUEUE,
    ]
    return int(dramatiq_main(make_argument_parser().parse_args(arguments)) or 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
