"""Dramatiq's master process: `python -m worker.master PROCESSES DRAMATIQ_THREADS`, started by `python -m worker`."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import structlog
from dramatiq.cli import HANDLED_SIGNALS, make_argument_parser
from dramatiq.cli import main as dramatiq_main

from schemas import logs, names
from schemas.settings import Settings
from worker.shutdown import MASTER_CLOSE_WITHIN_S, Shutdown

_LOOK_EVERY_S = 1.0

_log = structlog.get_logger("assistq.master")


def main(processes: str, threads: str) -> int:
    """Run the workers and the metrics server until a signal; return Dramatiq's exit status."""
    settings = Settings.from_env()
    logs.configure(settings)
    _end_in_time(settings)
    # Dramatiq's threads only hand hints on, first these, then those that fetch. The calls in flight are no
    # longer theirs: worker.app waits for those.
    hand_on_ms = int(settings.shutdown_grace_s * 1000 / 2)
    arguments = [
        "worker.app:broker",
        f"--processes={processes}",
        f"--threads={threads}",
        f"--worker-shutdown-timeout={hand_on_ms}",
        "--skip-logging",
        "--fork-function=worker.metrics_server:serve",
        "--queues",
        names.JOBS_QUEUE,
        names.WEBHOOKS_QUEUE,
    ]
    return int(dramatiq_main(make_argument_parser().parse_args(arguments)) or 0)


def _end_in_time(settings: Settings) -> None:
    """Have this process and its children end within the grace and some seconds after a signal, or a worker's death.

    Dramatiq's master waits for its children for ever, also for one that is stopped, or whose
    thread never lets go of the interpreter.
    """
    shutdown = Shutdown(
        grace_s=settings.shutdown_grace_s, close_within_s=MASTER_CLOSE_WITHIN_S, on_overrun=_kill_children
    )
    told, tell = multiprocessing.Pipe(duplex=False)
    os.set_blocking(tell.fileno(), False)
    # Dramatiq installs its own handlers later. This hears of the signals beside them.
    signal.set_wakeup_fd(tell.fileno(), warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
    # Signals are the main thread's.
    unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED_SIGNALS)
    threading.Thread(target=_begin_when_told, args=(shutdown, told, tell), name="master-watch", daemon=True).start()
    signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)


def _begin_when_told(shutdown: Shutdown, told: Connection, _tell: Connection) -> None:
    # `_tell` is held: closing it would close the signals' pipe.
    workers: dict[int, BaseProcess] = {}
    while True:
        # The metrics server is a daemon: the workers go on without it.
        workers |= {child.sentinel: child for child in multiprocessing.active_children() if not child.daemon}
        ready = wait([told, *workers], timeout=_LOOK_EVERY_S)
        signals = os.read(told.fileno(), 64) if told in ready else b""
        if set(signals) & set(HANDLED_SIGNALS) or any(sentinel in ready for sentinel in workers):
            break
    shutdown.begin()


def _kill_children() -> None:
    left = multiprocessing.active_children()
    for child in left:
        child.kill()
    _log.error("shutdown_overrun", waits_for="processes", pids=[child.pid for child in left])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
