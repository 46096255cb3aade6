"""What tests of real processes share: waiting with a deadline, and who is still alive."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

import psutil


def until(condition: Callable[[], object], *, what: str, timeout_s: float = 30.0) -> None:
    """Return once the condition holds; AssertionError if it does not within the time."""
    deadline_s = time.monotonic() + timeout_s
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {timeout_s:g} s: {what}"
        pause.wait(0.02)


def is_alive(pid: int) -> bool:
    """Return whether the process still runs; a zombie does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def alive_in_group(group: int) -> list[int]:
    """Return the processes of a group that still run."""
    return [pid for pid in psutil.pids() if _group_of(pid) == group and is_alive(pid)]


def _group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None
