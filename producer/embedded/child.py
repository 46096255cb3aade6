"""One command as a child process that never outlives this one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO

from producer.embedded import leash
from schemas.errors import AssistqError

LineReader = Callable[[str], None]

_LAST_LINES = 50
_TAIL_BYTES = 16 * 1024
_MAX_LINE_BYTES = 64 * 1024
_DRAIN_S = 5.0
_KILL_S = 10.0

# Linux ends the leash when the *thread* that forked the child ends, not the process. This
# one thread forks them all, so a child may be started from a thread that ends before it.
_spawner = ThreadPoolExecutor(max_workers=1, thread_name_prefix="assistq-spawner")


class Child:
    """A running command in a session of its own: a terminal's Ctrl-C does not reach it.

    Its group is killed as soon as the command itself has ended, so nothing that it started
    stays. On Linux it gets SIGTERM if this process dies, also by SIGKILL.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        log_file: Path | None = None,
        on_line: LineReader | None = None,
        keep_fds: Sequence[int] = (),
    ) -> None:
        """Start the command; AssistqError if there is no such program.

        Output is appended to `log_file`, or handed line by line to `on_line`, which must not
        raise; given both, `on_line` gets stdout and the file stderr; given neither, it is
        dropped. `keep_fds` stay open in the command.
        """
        environment = os.environ if env is None else env
        if shutil.which(command[0], path=environment.get("PATH")) is None:
            raise AssistqError(f"cannot run '{command[0]}': there is no such program")
        self._log_file = log_file
        self._log_offset_bytes = 0
        self._last_lines: deque[str] = deque(maxlen=_LAST_LINES)
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._told_to_end = False
        self._exit_code: int | None = None
        self._reader: threading.Thread | None = None
        with ExitStack() as stack:
            sink: int | IO[bytes] = subprocess.DEVNULL
            if log_file is not None:
                log_file.parent.mkdir(parents=True, exist_ok=True)
                sink = stack.enter_context(log_file.open("ab"))
                self._log_offset_bytes = sink.tell()
            self._process = _spawner.submit(
                subprocess.Popen[bytes],
                [sys.executable, "-I", "-S", leash.__file__, str(os.getpid()), "--", *command],
                stdin=subprocess.DEVNULL,
                stdout=sink if on_line is None else subprocess.PIPE,
                stderr=sink if on_line is None or log_file is not None else subprocess.STDOUT,
                env=environment,
                start_new_session=True,
                pass_fds=keep_fds,
            ).result()
        self.pid = self._process.pid
        self._started_s = time.monotonic()
        self._ended_s = self._started_s
        if on_line is not None:
            self._reader = threading.Thread(target=self._read, args=(on_line,), daemon=True)
            self._reader.start()
        threading.Thread(target=self._watch, daemon=True).start()

    @property
    def exit_code(self) -> int | None:
        """Return None while it runs, else its exit status, negative for a signal."""
        return self._exit_code if self._ended.is_set() else None

    @property
    def lived_s(self) -> float:
        """Return how long it has been running, or ran."""
        return (self._ended_s if self._ended.is_set() else time.monotonic()) - self._started_s

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Wait until it has ended and return its exit status; None if it still runs."""
        self._ended.wait(timeout_s)
        return self.exit_code

    def terminate(self) -> None:
        """Send SIGTERM, once however often this is called, to the command alone.

        Not to its group: Dramatiq's master passes the signal on, and a worker that gets it
        twice hangs.
        """
        with self._lock:
            if self._exit_code is None and not self._told_to_end:
                self._told_to_end = True
                os.kill(self.pid, signal.SIGTERM)

    def stop(self, *, grace_s: float) -> None:
        """End it: SIGTERM, then after `grace_s`, or when interrupted, SIGKILL to its group."""
        self.terminate()
        try:
            self._ended.wait(grace_s)
        finally:
            if not self._ended.is_set():
                with self._lock:
                    if self._exit_code is None:
                        self._kill_group()
                self._ended.wait(_KILL_S)

    def last_lines(self, count: int = 5) -> list[str]:
        """Return the last lines that this run of the command put out, oldest first."""
        if self._log_file is None:
            return list(self._last_lines)[-count:]
        with suppress(OSError), self._log_file.open("rb") as log:
            end = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_offset_bytes, end - _TAIL_BYTES))
            return log.read().decode(errors="replace").splitlines()[-count:]
        return []

    def _watch(self) -> None:
        # Seen but not yet reaped, its pid is still its own, and so is the name of its group.
        if hasattr(os, "waitid"):
            with suppress(ChildProcessError):
                os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        else:
            self._process.wait()
        with self._lock:
            self._kill_group()
            self._exit_code = self._process.wait()
        self._ended_s = time.monotonic()
        if self._reader is not None:
            self._reader.join(_DRAIN_S)
        self._ended.set()

    def _kill_group(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def _read(self, on_line: LineReader) -> None:
        pipe = self._process.stdout
        if pipe is None:
            return
        with pipe:
            while line := pipe.readline(_MAX_LINE_BYTES):
                text = line.decode(errors="replace").rstrip("\r\n")
                self._last_lines.append(text)
                on_line(text)
