"""Runs the process types of a Procfile, each started again when it dies."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.text import Text

from producer.embedded import procfile
from producer.embedded.child import Child
from producer.embedded.kept import Kept

# Takes a name and a line.
Output = Callable[[str, str], None]
# Takes a name, the deaths in a row and the last lines of the output.
OnFailing = Callable[[str, int, list[str]], None]

DEATHS_UNTIL_FAILING = 5
_COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red")


class Supervisor:
    """Keeps one child for each command running, between `start()` and `stop()`."""

    def __init__(
        self,
        commands: Mapping[str, str],
        *,
        env: Mapping[str, str],
        output: Output | None = None,
        log_dir: Path | None = None,
        on_failing: OnFailing | None = None,
        grace_s: float = 30.0,
    ) -> None:
        """Take the commands by name; nothing starts yet.

        `env` is added to this process's environment. Lines go to `output`; without it each
        child writes to `log_dir/NAME.log`. `on_failing` hears of every DEATHS_UNTIL_FAILING-th
        death in a row of a child that did not live long, in a thread of the supervisor.
        """
        self._commands = dict(commands)
        self._env = {"PYTHONUNBUFFERED": "1", **os.environ, **env}
        self._output = output
        self._log_dir = log_dir
        self._on_failing = on_failing
        self._grace_s = grace_s
        self._kept: dict[str, Kept] = {}

    def run(self, stop: threading.Event) -> None:
        """Run all of them until `stop` is set, then end them."""
        try:
            self.start()
            stop.wait()
        finally:
            self.stop()

    def start(self) -> None:
        """Start all of them; AssistqError if one names no program, the others are then to be stopped."""
        for name, command in self._commands.items():
            self._kept[name] = Kept(partial(self._start, name, command), on_death=partial(self._on_death, name))

    def stop(self) -> None:
        """End all of them together: SIGTERM to each, SIGKILL to who is left after the grace; idempotent."""
        deadline_s = time.monotonic() + self._grace_s
        with ExitStack() as every_one:
            for kept in self._kept.values():
                every_one.callback(_stop_by, kept, deadline_s)
            for kept in self._kept.values():
                kept.terminate()

    def pids(self) -> dict[str, int]:
        """Return the process id of each child, by name."""
        return {name: kept.child.pid for name, kept in self._kept.items()}

    def log_file(self, name: str) -> Path | None:
        """Return where the named child writes its output; None if that goes to `output`."""
        return None if self._output is not None or self._log_dir is None else self._log_dir / f"{name}.log"

    def _start(self, name: str, command: str) -> Child:
        on_line = None if self._output is None else partial(self._output, name)
        return Child(procfile.argv(command), env=self._env, log_file=self.log_file(name), on_line=on_line)

    def _on_death(self, name: str, child: Child, early_deaths: int, pause_s: float) -> None:
        if self._output is not None:
            self._output(name, f"ended ({ending(child)}); starts again in {pause_s:g} s")
        if self._on_failing is not None and early_deaths % DEATHS_UNTIL_FAILING == 0:
            self._on_failing(name, early_deaths, child.last_lines())


def ending(child: Child) -> str:
    """Return how a child ended, for a person: `exit status 1`, `signal 9`, `still runs`."""
    code = child.exit_code
    if code is None:
        return "still runs"
    return f"exit status {code}" if code >= 0 else f"signal {-code}"


def prefixed_output(console: Console, *, names: list[str]) -> Output:
    """Return an output that prints `name | line`, the name padded, and coloured on a terminal."""
    width = max((len(name) for name in names), default=0)
    colours = {name: _COLOURS[at % len(_COLOURS)] for at, name in enumerate(names)}

    def show(name: str, line: str) -> None:
        console.print(Text.assemble((f"{name:<{width}} | ", colours[name]), Text.from_ansi(line)), soft_wrap=True)

    return show


def _stop_by(kept: Kept, deadline_s: float) -> None:
    kept.stop(grace_s=max(deadline_s - time.monotonic(), 0.0))
