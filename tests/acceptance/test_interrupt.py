"""Ctrl-C and SIGTERM in the middle of a run: calls in flight are kept, and the same command goes on."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

from tests.command_line import ASSISTQ, IN_FLIGHT_AT_MOST, Installation, asked_rows
from tests.loopback_provider import LoopbackProvider, Reply, answers, default_reply, hang_until
from tests.processes import until

ROWS = 80

# Runs a command in a pseudo-terminal, whose keyboard is stdin and whose screen is stdout.
IN_A_TERMINAL = """
import os, pty, sys
sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))
"""


def test_a_run_that_is_interrupted_twice_asks_for_each_row_once_in_all(
    shell: Installation, provider: LoopbackProvider
) -> None:
    provider.script(lambda body, n: Reply(text=default_reply(body, n).text, delay_s=0.7))
    command = ("run", shell.reviews(ROWS), "--assistant", shell.sentiment())

    running = shell.start(*command)
    provider.wait_for_requests(10, deadline_s=40)
    running.interrupt()
    ended = running.ended()
    assert ended.code == 130, ended.err
    assert "stopping: calls in flight are finished first" in ended.err
    assert "interrupted: every job is kept, run the same command again to go on" in ended.err
    shell.nothing_left()
    first = provider.count
    assert 10 <= first < ROWS - IN_FLIGHT_AT_MOST

    running = shell.start(*command)
    provider.wait_for_requests(first + 10, deadline_s=40)
    running.process.send_signal(signal.SIGTERM)
    ended = running.ended()
    assert ended.code == 143, ended.err
    assert f"{first} of {ROWS} rows are done" in ended.err
    shell.nothing_left()
    second = provider.count
    assert first + 10 <= second < ROWS

    ended = shell.run(*command)
    assert ended.code == 0, ended.err
    assert f"{second} of {ROWS} rows are done" in ended.err
    assert f"{ROWS} rows: {ROWS} succeeded" in ended.out
    assert provider.count == len(set(asked_rows(provider))) == ROWS
    shell.nothing_left()


def test_in_a_terminal_a_bar_shows_the_progress_and_a_second_ctrl_c_waits_for_no_call(
    shell: Installation, provider: LoopbackProvider
) -> None:
    answered = threading.Event()
    provider.script(lambda _, n: answers("positive") if n <= 4 else hang_until(answered))
    screen = shell.directory / "screen"
    run = ["run", str(shell.reviews(ROWS)), "--assistant", str(shell.sentiment())]
    command = [sys.executable, "-c", IN_A_TERMINAL, str(ASSISTQ), *run]
    with screen.open("wb") as out:
        terminal = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, env=shell.env, cwd=shell.directory)
    assert terminal.stdin is not None
    with terminal.stdin as keyboard:
        provider.wait_for_requests(IN_FLIGHT_AT_MOST + 4, deadline_s=30)
        until(lambda: f"4/{ROWS}" in screen.read_text("utf-8"), what="the bar shows 4 rows")
        assert "rows/s" in screen.read_text("utf-8")
        keyboard.write(b"\x03")
        keyboard.flush()
        until(lambda: "once more to stop at once" in screen.read_text("utf-8"), what="it says how to stop at once")
        keyboard.write(b"\x03")
        keyboard.flush()
        assert terminal.wait(timeout=8) == 130
    assert "Traceback" not in screen.read_text("utf-8")
    shell.nothing_left()


def test_ctrl_c_is_no_traceback_while_the_command_still_loads(shell: Installation) -> None:
    running = shell.start("run", shell.reviews(2), "--assistant", shell.sentiment())
    maps = Path(f"/proc/{running.process.pid}/maps")
    until(lambda: "pydantic_core" in maps.read_text("utf-8"), what="it loads a library")
    running.interrupt()
    assert running.ended(timeout_s=10).code == 130
    shell.nothing_left()
