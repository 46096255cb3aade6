"""The parts of the system as processes: started, started again when they end, and ended with this one.

One thread starts and watches them all: the kernel ends the leash of a child when the thread that started it ends.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ops.faults.facts import now_s

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)
# Who supervises waits a moment before it starts again what just ended.
_START_AGAIN_S = 0.3


class Part:
    """One command that is kept running, in a session of its own."""

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        env: Mapping[str, str],
        output: Path,
        cwd: Path,
        user: str | None = None,
        end_signal: int = signal.SIGTERM,
        keep: bool = True,
    ) -> None:
        """Take the command; `keep` False is not started again after it ended with status 0."""
        self.name = name
        self._command = [str(word) for word in command]
        self._env = dict(env)
        self._output = output
        self._cwd = cwd
        self._user = user
        self._end_signal = end_signal
        self._keep = keep
        self._process: subprocess.Popen[bytes] | None = None
        self._start_at_s = 0.0
        # All that it ever was: its processes are in these sessions, whatever became of the first one.
        self.sessions: list[int] = []
        self.finished = False

    @property
    def pid(self) -> int | None:
        """Return the process that was started, None while there is none."""
        return None if self._process is None else self._process.pid

    def stay_away(self, for_s: float) -> None:
        """Let it be started again no sooner than this after now."""
        self._start_at_s = now_s() + for_s

    def tick(self, *, start: bool = True) -> bool:
        """Notice its end, start it when it is time; return whether it was started now."""
        if self._process is not None and self._process.poll() is not None:
            self.finished = not self._keep and self._process.returncode == 0
            self._process = None
            self._start_at_s = max(self._start_at_s, now_s() + _START_AGAIN_S)
        if self._process is None and start and not self.finished and now_s() >= self._start_at_s:
            self._start()
            return True
        return False

    def signal(self, number: int) -> bool:
        """Send the signal to the process that was started; False if there is none."""
        if self._process is None or self._process.poll() is not None:
            return False
        self._process.send_signal(number)
        return True

    def end(self) -> None:
        """Tell it to end, and start it no more."""
        self.finished = True
        self.signal(signal.SIGCONT)
        self.signal(self._end_signal)

    def wait(self, timeout_s: float) -> bool:
        """Return whether it has ended within the time."""
        if self._process is None:
            return True
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        self._process = None
        return True

    def _start(self) -> None:
        with self._output.open("ab") as output:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._cwd,
                env=self._env,
                user=self._user,
                group=self._user,
                extra_groups=None if self._user is None else (),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                # After the change of user, which would undo it; nothing in it allocates or locks.
                preexec_fn=_die_with_parent,  # noqa: PLW1509
            )
        self.sessions.append(self._process.pid)


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def session_of(pid: int) -> int | None:
    """Return the session of a process; None if there is no such process."""
    try:
        return os.getsid(pid)
    except OSError:
        return None


def parent_of(pid: int) -> int | None:
    """Return the parent of a process that runs; None of one that does not, or is a zombie."""
    with suppress(OSError, ValueError):
        # The name, in brackets, may hold anything.
        state, parent, *_ = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        return None if state in "ZX" else int(parent)
    return None


def processes() -> list[int]:
    """Return the ids of all processes of this machine."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def kill(pid: int, number: int) -> bool:
    """Send a signal to a process that is known to be ours; False if it has ended."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True
