"""`worker.app`'s broker with a profiler in each worker process; Dramatiq's master imports it instead.

Writes to OVERHEAD_PROFILE_DIR, a file a process: the event loop's profile (cProfile, which
makes small functions look dearer than they are), and the processor seconds of each thread.
"""

from __future__ import annotations

import cProfile
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

from dramatiq import Broker, Middleware, Worker
from dramatiq.asyncio import get_event_loop_thread

from worker.app import broker

__all__ = ["broker"]

_TICKS_A_S = os.sysconf("SC_CLK_TCK")


class Profiled(Middleware):
    """Profiles the event loop's thread from the boot to the shutdown."""

    def __init__(self) -> None:
        self._profile = cProfile.Profile()

    def after_worker_boot(self, broker: Broker, worker: Worker) -> None:  # noqa: ARG002 - Dramatiq's signature
        """Begin."""
        self._in_loop(self._profile.enable)

    def before_worker_shutdown(self, broker: Broker, worker: Worker) -> None:  # noqa: ARG002
        """End, and write what was seen."""
        self._in_loop(self._profile.disable)
        directory = Path(os.environ["OVERHEAD_PROFILE_DIR"])
        self._profile.dump_stats(directory / f"{os.getpid()}.pstats")
        (directory / f"{os.getpid()}.json").write_text(json.dumps(_threads()))

    @staticmethod
    def _in_loop(act: Callable[[], object]) -> None:
        thread = get_event_loop_thread()
        if thread is None:
            return
        done = threading.Event()
        thread.loop.call_soon_threadsafe(lambda: (act(), done.set()))
        done.wait(10)


def _threads() -> list[tuple[str, float]]:
    names = {thread.native_id: f"{type(thread).__name__} {thread.name}" for thread in threading.enumerate()}
    found = []
    for task in Path("/proc/self/task").iterdir():
        fields = (task / "stat").read_text().rsplit(")", 1)[1].split()
        found.append((names.get(int(task.name), "?"), (int(fields[11]) + int(fields[12])) / _TICKS_A_S))
    return found


if os.environ.get("OVERHEAD_PROFILE_DIR"):
    broker.add_middleware(Profiled())
