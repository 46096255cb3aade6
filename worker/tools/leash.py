"""Runs one command so that it ends with the worker: `python leash.py PARENT_PID -- COMMAND…`.

On Linux the command gets SIGTERM when its parent dies, however it dies; elsewhere it only
sees its stdin end. This file is run by its path and imports the standard library alone.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
CANNOT_RUN = 127


def main(arguments: list[str]) -> int:
    """Become the command; return an exit status only if that was not possible."""
    parent_pid, command = int(arguments[0]), arguments[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    # A parent that died before the call above sends no signal any more.
    if os.getppid() != parent_pid:
        return 1
    # Python ignores SIGPIPE, and what is ignored stays so through exec.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        os.execvp(command[0], command)  # noqa: S606 - that there is no shell is the point
    except OSError as exc:
        sys.stderr.write(f"cannot run {command[0]}: {exc.strerror}\n")
    return CANNOT_RUN


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
