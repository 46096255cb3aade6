"""One process's shutdown: how long the calls in flight may take, and an end by force where something hangs.

A query that a stopped database never answers, a tool's thread that never returns, a thread that
is no daemon: each would keep the process for ever, and whoever waits for it.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

# What closing may take after the grace, in a worker process; then in the master, which waits for these.
CLOSE_WITHIN_S = 4.0
MASTER_CLOSE_WITHIN_S = 7.0
# Telling what was left may hang on the same thing.
_TELL_WITHIN_S = 1.0


class Shutdown:
    """Begins once; from then on the process has `grace_s` + `close_within_s` to end, and is ended after that."""

    def __init__(
        self, *, grace_s: float, close_within_s: float, on_overrun: Callable[[], None], exit_status: int = 1
    ) -> None:
        """Nothing runs yet. `on_overrun` tells what was left; it runs in a thread and may hang."""
        self.grace_s = grace_s
        self._close_within_s = close_within_s
        self._on_overrun = on_overrun
        self._exit_status = exit_status
        self._ends_at_s: float | None = None

    def begin(self) -> None:
        """Start the clock; a second call changes nothing. Fit for a signal's handler."""
        if self._ends_at_s is None:
            self._ends_at_s = time.monotonic() + self.grace_s
            threading.Thread(target=self._watch, name="shutdown", daemon=True).start()

    @property
    def grace_left_s(self) -> float:
        """Return how long calls in flight may still take: all of the grace before the shutdown, 0 at the least."""
        return self.grace_s if self._ends_at_s is None else max(0.0, self._ends_at_s - time.monotonic())

    def _watch(self) -> None:
        # A process that ends in time takes this thread with it.
        time.sleep(self.grace_s + self._close_within_s)
        teller = threading.Thread(target=self._tell, name="shutdown-told", daemon=True)
        teller.start()
        teller.join(_TELL_WITHIN_S)
        os._exit(self._exit_status)

    def _tell(self) -> None:
        with suppress(Exception):  # it ends all the same
            self._on_overrun()
        with suppress(Exception):
            sys.stderr.flush()


def threads_left() -> list[str]:
    """Return the names of the threads that would keep this process, and the line at which each of them is."""
    frames = sys._current_frames()  # noqa: SLF001 - documented, in spite of its name
    left = []
    for thread in threading.enumerate():
        frame = frames.get(thread.ident or 0)
        if not thread.daemon and frame is not None:
            left.append(f"{thread.name} at {Path(frame.f_code.co_filename).name}:{frame.f_lineno}")
    return left
