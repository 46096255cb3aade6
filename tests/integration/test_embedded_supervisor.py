from __future__ import annotations

import io
import os
import shlex
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from rich.console import Console

from producer.embedded import kept
from producer.embedded.supervisor import Supervisor, prefixed_output
from schemas.errors import AssistqError
from tests.processes import is_alive, until

SLEEP_LONG = "import threading; threading.Event().wait(600)"
END_AT_ONCE = "import sys; print('hello', flush=True); sys.exit(3)"

Make = Callable[..., Supervisor]


@pytest.fixture
def supervise() -> Iterator[Make]:
    """Build a supervisor that is stopped after the test."""
    with ExitStack() as stack:

        def make(commands: dict[str, str], **options: object) -> Supervisor:
            supervisor = Supervisor(commands, env={}, **{"grace_s": 20.0, **options})  # type: ignore[arg-type]
            stack.callback(supervisor.stop)
            return supervisor

        yield make


@pytest.fixture
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "FIRST_PAUSE_S", 0.001)


def python(code: str) -> str:
    return shlex.join(["python", "-u", "-c", code])


def test_a_command_that_ends_is_started_again_and_its_lines_carry_its_name(
    supervise: Make, without_pauses: None
) -> None:
    shown = io.StringIO()
    output = prefixed_output(Console(file=shown, width=20), names=["worker", "web"])
    supervisor = supervise({"worker": python(END_AT_ONCE), "web": python(f"print('up'); {SLEEP_LONG}")}, output=output)

    supervisor.start()

    until(lambda: shown.getvalue().count("worker | hello\n") >= 3, what="the worker ran three times")
    until(lambda: "web    | up\n" in shown.getvalue(), what="the other one is up")
    assert "worker | ended (exit status 3); starts again in 0.001 s\n" in shown.getvalue()


def test_on_a_terminal_each_name_has_its_colour_and_a_file_gets_none() -> None:
    terminal, file = io.StringIO(), io.StringIO()
    for target, forced in ((terminal, True), (file, False)):
        console = Console(file=target, force_terminal=forced, color_system="standard" if forced else None, width=20)
        output = prefixed_output(console, names=["a", "b"])
        output("a", "\x1b[31mred\x1b[0m and a line longer than the console [bold]as it is[/bold]")
        output("b", "x")

    assert "\x1b[36ma | \x1b[0m\x1b[31mred\x1b[0m" in terminal.getvalue()
    assert "\x1b[35mb | \x1b[0mx" in terminal.getvalue()
    assert file.getvalue() == "a | red and a line longer than the console [bold]as it is[/bold]\nb | x\n"


def test_a_process_that_is_killed_is_replaced(supervise: Make, without_pauses: None) -> None:
    supervisor = supervise({"worker": python(SLEEP_LONG)})
    supervisor.start()
    killed = supervisor.pids()["worker"]

    os.kill(killed, signal.SIGKILL)

    until(lambda: supervisor.pids()["worker"] != killed, what="another one runs")
    assert is_alive(supervisor.pids()["worker"])
    assert not is_alive(killed)


def test_stop_ends_all_of_them_for_good(supervise: Make) -> None:
    supervisor = supervise({"a": python(SLEEP_LONG), "b": python(SLEEP_LONG)})
    supervisor.start()
    pids = supervisor.pids()

    supervisor.stop()

    assert not any(is_alive(pid) for pid in pids.values())
    assert supervisor.pids() == pids


def test_stop_does_not_wait_out_a_pause_before_a_restart(supervise: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "FIRST_PAUSE_S", 30.0)
    lines: list[str] = []
    supervisor = supervise({"worker": python(END_AT_ONCE)}, output=lambda _name, line: lines.append(line))
    supervisor.start()
    until(lambda: any("starts again in 30 s" in line for line in lines), what="it waits to start again")

    stopper = threading.Thread(target=supervisor.stop)
    stopper.start()
    stopper.join(10)

    assert not stopper.is_alive()


def test_all_are_asked_to_end_before_any_is_waited_for(supervise: Make) -> None:
    """Each ends only when the other was asked to end too: one after the other would last the grace."""
    lines: list[str] = []
    code = (
        "import os, signal, sys, threading\n"
        "end = threading.Event()\n"
        "signal.signal(signal.SIGTERM, lambda *_: end.set())\n"
        "print('ready', flush=True)\n"
        "end.wait()\n"
        "print('asked', flush=True)\n"
        "threading.Event().wait()\n"
    )
    supervisor = supervise(
        {"a": python(code), "b": python(code)}, output=lambda _name, line: lines.append(line), grace_s=2.0
    )
    supervisor.start()
    until(lambda: lines.count("ready") == 2, what="both are ready")

    stopper = threading.Thread(target=supervisor.stop)
    stopper.start()
    until(lambda: lines.count("asked") == 2, what="both were asked", timeout_s=1.5)
    stopper.join(20)

    assert not any(is_alive(pid) for pid in supervisor.pids().values())


def test_run_ends_when_it_is_told_to(supervise: Make) -> None:
    supervisor, stop = supervise({"worker": python(SLEEP_LONG)}), threading.Event()
    thread = threading.Thread(target=supervisor.run, args=(stop,))
    thread.start()
    until(supervisor.pids, what="it runs")

    stop.set()
    thread.join(20)

    assert not thread.is_alive()
    assert not is_alive(supervisor.pids()["worker"])


def test_a_process_that_keeps_dying_is_reported_with_its_last_lines(
    supervise: Make, without_pauses: None, tmp_path: Path
) -> None:
    reports: list[tuple[str, int, list[str]]] = []
    reported = threading.Event()

    def on_failing(name: str, deaths: int, last_lines: list[str]) -> None:
        reports.append((name, deaths, last_lines))
        reported.set()

    supervisor = supervise({"worker": python(END_AT_ONCE)}, log_dir=tmp_path, on_failing=on_failing)
    supervisor.start()

    assert reported.wait(30)
    assert reports[0] == ("worker", 5, ["hello"])
    assert supervisor.log_file("worker") == tmp_path / "worker.log"
    assert (tmp_path / "worker.log").read_text().startswith("hello\nhello\nhello\nhello\nhello\n")


def test_a_program_that_does_not_exist_is_told_at_once_and_nothing_is_left(supervise: Make) -> None:
    supervisor = supervise({"good": python(SLEEP_LONG), "bad": "no-such-program --x"})

    with pytest.raises(AssistqError, match="cannot run 'no-such-program'"):
        supervisor.run(threading.Event())

    assert list(supervisor.pids()) == ["good"]
    assert not is_alive(supervisor.pids()["good"])


def test_the_environment_that_is_given_is_added_to_our_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OURS", "1")
    code = f"import os; print(os.environ['OURS'], os.environ['GIVEN']); {SLEEP_LONG}"
    supervisor = Supervisor({"worker": python(code)}, env={"GIVEN": "2"}, log_dir=tmp_path)
    try:
        supervisor.start()
        until(lambda: (tmp_path / "worker.log").read_text() == "1 2\n", what="it printed both")
    finally:
        supervisor.stop()
