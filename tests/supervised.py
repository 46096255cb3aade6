"""A worker that is started again when it ends, as by `assistq up`; and what its processes are."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import cast

import psutil

from producer.embedded.supervisor import Supervisor
from schemas import names
from tests.at_work import BOOTS_WITHIN_S, Works
from tests.processes import until

# A process that has not ended by now hangs; nothing waits for it this long.
ENDS_WITHIN_S = 60.0


class SupervisedWorks(Works):
    """Works whose worker is kept running."""

    _supervisor: Supervisor | None = None

    def start(self) -> int:
        """Start the supervisor, wait until all processes take jobs, and return the master's pid."""
        # It writes to `directory/worker.log`, where `logged()` looks.
        self._supervisor = Supervisor(
            {"worker": "python -m worker"}, env=self.environment, log_dir=self.directory, grace_s=0
        )
        self._supervisor.start()
        until(
            lambda: self.producer.capacity() == self.capacity,
            what="every worker process takes jobs",
            timeout_s=BOOTS_WITHIN_S,
        )
        return self._supervisor.pids()["worker"]

    def kill(self) -> None:
        """Kill -9 the worker, and start it no more."""
        if self._supervisor is not None:
            self._supervisor.stop()
            self._supervisor = None


def tree_of(pid: int) -> list[psutil.Process]:
    """Return the process and all that it started, and they."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def worker_pids(works: Works, master: int) -> list[int]:
    """Return the worker processes of a master: each names itself in Redis by host, pid and a number."""
    processes = cast("list[bytes]", works.redis.hkeys(names.WORKERS))
    named = {int(name.split(b":")[-2]) for name in processes}
    return sorted(named & {process.pid for process in tree_of(master)})


def nobody_left(processes: Iterable[psutil.Process]) -> None:
    """Wait until none of the processes runs."""
    _, left = psutil.wait_procs(list(processes), timeout=ENDS_WITHIN_S)
    left = [process for process in left if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert not left, left


@contextmanager
def stopped(pids: Iterable[int]) -> Iterator[None]:
    """SIGSTOP the processes meanwhile, each thread of them: on a busy machine one may run on for a moment."""
    pids = list(pids)
    try:
        for pid in pids:
            # A backend of PostgreSQL may have ended since it was listed.
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        until(lambda: all(map(_stands_still, pids)), what=f"the processes {pids} stand still")
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def _stands_still(pid: int) -> bool:
    # One that ended in that moment is a zombie for as long as its parent stands still.
    still = {psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE}
    try:
        return all(psutil.Process(thread.id).status() in still for thread in psutil.Process(pid).threads())
    except psutil.NoSuchProcess:
        return True
