from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from producer.embedded import leash
from producer.embedded.child import Child
from schemas.errors import AssistqError
from tests.processes import alive_in_group, is_alive, until

SLEEP_LONG = "import threading; threading.Event().wait(600)"

IGNORE_SIGTERM = """
import signal, threading
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
threading.Event().wait(600)
"""

# The command counts each SIGTERM and ends on SIGUSR1.
COUNT_SIGTERMS = """
import signal, threading
count, end = 0, threading.Event()
def counted(*_):
    global count
    count += 1
    print(f"terms {count}", flush=True)
signal.signal(signal.SIGTERM, counted)
signal.signal(signal.SIGUSR1, lambda *_: end.set())
print("ready", flush=True)
end.wait(600)
"""


def python(code: str) -> list[str]:
    return [sys.executable, "-u", "-c", code]


@pytest.fixture
def started() -> Iterator[ExitStack]:
    """Children pushed here are stopped, whatever the test did."""
    with ExitStack() as stack:
        yield stack


def start(stack: ExitStack, code: str, lines: list[str] | None = None) -> Child:
    child = Child(python(code), on_line=(lines if lines is not None else []).append)
    stack.callback(child.stop, grace_s=0)
    return child


def test_every_line_of_both_streams_is_handed_on_before_the_end_is_told() -> None:
    lines: list[str] = []
    child = Child(
        python("import sys; print('out', flush=True); print('err', file=sys.stderr); print('last')"),
        on_line=lines.append,
    )

    assert child.wait(30) == 0
    assert lines == ["out", "err", "last"]
    assert child.last_lines(2) == ["err", "last"]


def test_a_log_file_takes_the_output_and_the_last_lines_are_those_of_this_run(tmp_path: Path) -> None:
    log = tmp_path / "deep" / "child.log"
    assert Child(python("print('first')"), log_file=log).wait(30) == 0
    child = Child(python("print('second')"), log_file=log)

    assert child.wait(30) == 0
    assert log.read_text() == "first\nsecond\n"
    assert child.last_lines() == ["second"]


def test_with_both_the_reader_gets_stdout_and_the_file_gets_stderr(tmp_path: Path) -> None:
    lines: list[str] = []
    child = Child(
        python("import sys; print('out'); print('err', file=sys.stderr)"), on_line=lines.append, log_file=tmp_path / "l"
    )

    assert child.wait(30) == 0
    assert (lines, (tmp_path / "l").read_text()) == (["out"], "err\n")


def test_a_program_that_does_not_exist_is_named() -> None:
    with pytest.raises(AssistqError, match="cannot run 'no-such-program'"):
        Child(["no-such-program"])


def test_the_command_gets_the_environment_that_is_given() -> None:
    lines: list[str] = []
    child = Child(python("import os; print(os.environ['COLOUR'])"), env={"COLOUR": "blue"}, on_line=lines.append)

    assert (child.wait(30), lines) == (0, ["blue"])


def test_the_command_has_a_session_of_its_own_so_that_ctrl_c_does_not_reach_it(started: ExitStack) -> None:
    child = start(started, SLEEP_LONG)

    assert os.getsid(child.pid) == child.pid


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_broken_pipe_ends_the_command_though_python_ignores_that_signal() -> None:
    lines: list[str] = []
    child = Child(["cat", "/proc/self/status"], on_line=lines.append)
    child.wait(30)
    ignored = next(int(line.split()[1], 16) for line in lines if line.startswith("SigIgn"))

    assert not ignored & 1 << (signal.SIGPIPE - 1)


def test_stop_lets_the_command_end_by_itself(started: ExitStack) -> None:
    lines: list[str] = []
    child = start(
        started,
        "import signal, threading\n"
        "end = threading.Event()\n"
        "signal.signal(signal.SIGTERM, lambda *_: end.set())\n"
        "print('ready', flush=True)\n"
        "end.wait(600)\n"
        "print('bye')\n",
        lines,
    )
    until(lambda: "ready" in lines, what="the child is ready")

    child.stop(grace_s=30)

    assert child.exit_code == 0
    assert lines == ["ready", "bye"]


def test_stop_kills_the_whole_group_of_a_command_that_ignores_sigterm(started: ExitStack) -> None:
    lines: list[str] = []
    child = start(
        started,
        f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-u', '-c', {IGNORE_SIGTERM!r}])\n{IGNORE_SIGTERM}",
        lines,
    )
    until(lambda: lines.count("ready") == 2, what="both processes ignore SIGTERM")

    child.stop(grace_s=0.2)

    assert child.exit_code == -signal.SIGKILL
    until(lambda: not alive_in_group(child.pid), what="nobody of the group is left")


def test_what_a_command_leaves_behind_is_killed_when_it_ends(started: ExitStack) -> None:
    lines: list[str] = []
    child = start(
        started,
        f"import subprocess, sys\nprint(subprocess.Popen([sys.executable, '-c', {SLEEP_LONG!r}]).pid, flush=True)\n",
        lines,
    )

    assert child.wait(30) == 0
    left_behind = int(lines[0])
    until(lambda: not is_alive(left_behind), what="the process that was left behind has ended")


def test_sigterm_goes_once_and_to_the_command_alone(started: ExitStack) -> None:
    lines: list[str] = []
    child = start(
        started,
        f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-u', '-c', {COUNT_SIGTERMS!r}])\n{COUNT_SIGTERMS}",
        lines,
    )
    until(lambda: lines.count("ready") == 2, what="both processes count")

    child.terminate()
    child.terminate()
    until(lambda: "terms 1" in lines, what="the signal arrived")
    child.stop(grace_s=0.3)

    assert [line for line in lines if line.startswith("terms")] == ["terms 1"]


def test_stop_may_be_called_again(started: ExitStack) -> None:
    child = start(started, SLEEP_LONG)

    child.stop(grace_s=30)
    child.stop(grace_s=30)

    assert child.exit_code == -signal.SIGTERM


def test_a_child_outlives_the_thread_that_started_it(started: ExitStack) -> None:
    lines: list[str] = []
    children: list[Child] = []

    def start_and_end() -> None:
        children.append(start(started, f"print('ready', flush=True); {SLEEP_LONG}", lines))
        until(lambda: "ready" in lines, what="the leash is on")

    thread = threading.Thread(target=start_and_end)
    thread.start()
    thread.join()

    # The kernel signals at the end of a thread that forked a leashed child.
    assert children[0].wait(1.0) is None


@pytest.mark.skipif(sys.platform != "linux", reason="the leash is a call of Linux")
@pytest.mark.parametrize("runs_already", [True, False])
def test_the_child_ends_when_its_parent_is_killed(runs_already: bool) -> None:
    """Also when the parent dies before the leash is on."""
    code = (
        "from producer.embedded.child import Child; import sys, threading\n"
        f"lines = (lambda line: print(line, flush=True)) if {runs_already} else None\n"
        f"child = Child([sys.executable, '-c', {'import os; print(os.getpid(), flush=True); ' + SLEEP_LONG!r}],"
        " on_line=lines)\n"
        f"if not {runs_already}: print(child.pid, flush=True)\n"
        "threading.Event().wait(600)\n"
    )
    with subprocess.Popen(python(code), stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child_pid = int(parent.stdout.readline())
        alive_before = is_alive(child_pid)
        parent.kill()

    assert alive_before
    until(lambda: not is_alive(child_pid), what="the child has ended")


def test_a_command_whose_parent_died_before_the_leash_was_on_does_not_start(tmp_path: Path) -> None:
    touch = shutil.which("touch")
    assert touch is not None
    not_the_parent = str(os.getppid())

    done = subprocess.run(
        [sys.executable, "-I", "-S", leash.__file__, not_the_parent, "--", touch, str(tmp_path / "ran")], check=False
    )

    assert done.returncode == 1
    assert not (tmp_path / "ran").exists()
