"""Ties a process's life to its parent's, and has it told to end but once."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies, kill -9 included (Linux only).

    The worker processes of a Dramatiq master that was killed would otherwise go on for ever.
    """
    if not sys.platform.startswith("linux"):
        return
    # As it was at the fork: who asks only now may be told of whoever inherits orphans.
    born_of = multiprocessing.parent_process()
    parent = os.getppid() if born_of is None else born_of.pid
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the call
        os.kill(os.getpid(), signal.SIGKILL)


def heed_first_signal(begin: Callable[[], None]) -> None:
    """Have the handlers of SIGTERM and SIGHUP that are installed now called once, after `begin`, and both then ignored.

    A killed command's children get several, one for each of its threads that ends. At the
    second one a Dramatiq worker would leave its main thread, and its other threads would go on for ever.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}

    def once(number: int, frame: FrameType | None) -> None:
        for each in handlers:
            signal.signal(each, signal.SIG_IGN)
        begin()
        handler = handlers[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)

    for number in handlers:
        signal.signal(number, once)
