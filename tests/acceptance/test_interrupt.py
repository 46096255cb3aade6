"""Ctrl-C and SIGTERM in the middle of a run: calls in flight are kept, and the same command goes on."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

from tests.command_line import IN_FLIGHT_AT_MOST, Installation, asked_rows
from tests.loopback_provider import LoopbackProvider, Reply, default_reply, hang_until
from tests.processes import until

ROWS = 100


def test_a_run_that_is_interrupted_twice_asks_for_each_row_once_in_all(
    shell: Installation, provider: LoopbackProvider
) -> None:
    provider.script(lambda body, n: Reply(text=default_reply(body, n).text, delay_s=0.8))
    command = ("run", shell.reviews(ROWS), "--assistant", shell.sentiment())

    running = shell.start(*command)
    provider.wait_for_requests(10)
    running.interrupt()
    ended = running.ended()
    assert ended.code == 130, ended.err
    assert "stopping: calls in flight are finished first" in ended.err
    shell.nothing_left()
    first = provider.count
    assert 10 <= first < ROWS - IN_FLIGHT_AT_MOST

    running = shell.start(*command)
    provider.wait_for_requests(first + 10)
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


def test_a_second_ctrl_c_waits_for_no_call(shell: Installation, provider: LoopbackProvider) -> None:
    answered = threading.Event()
    provider.script(lambda *_: hang_until(answered))
    running = shell.start("run", shell.reviews(ROWS), "--assistant", shell.sentiment())
    provider.wait_for_requests(IN_FLIGHT_AT_MOST)
    running.interrupt()
    running.says("once more to stop at once")
    running.interrupt()
    assert running.ended(timeout_s=8).code == 130
    shell.nothing_left()


def test_ctrl_c_is_no_traceback_while_the_command_still_loads(shell: Installation) -> None:
    running = shell.start("run", shell.reviews(2), "--assistant", shell.sentiment())
    maps = Path(f"/proc/{running.process.pid}/maps")
    until(lambda: "pydantic_core" in maps.read_text("utf-8"), what="it loads a library")
    running.interrupt()
    assert running.ended(timeout_s=10).code == 130
    shell.nothing_left()
