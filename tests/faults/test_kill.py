"""`kill -9` of everything, and of each part: nothing is lost, and nothing that was answered is paid for again."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterator

import psutil
import pytest

from tests.command_line import IN_FLIGHT_AT_MOST, Installation, asked_rows
from tests.loopback_provider import LoopbackProvider, Reply, Script, default_reply

# A reply that was sent this long before a kill has been journaled, also on a busy machine.
JOURNALED_AFTER_S = 0.5


def slow(delay_s: float) -> Script:
    return lambda body, n: Reply(text=default_reply(body, n).text, delay_s=delay_s)


@pytest.fixture(scope="module", autouse=True)
def orphaned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """A run whose command was killed when this module began: the end of its children is awaited in the last test."""
    with (
        LoopbackProvider(slow(0.4)) as provider,
        Installation(tmp_path_factory.mktemp("orphaned"), ASSISTQ_PROVIDER_BASE_URL=provider.base_url) as installation,
    ):
        running = installation.start("run", installation.reviews(60), "--assistant", installation.sentiment())
        provider.wait_for_requests(20, deadline_s=30)
        running.process.kill()
        yield installation


def assert_all_succeeded_once(shell: Installation, rows: int) -> None:
    results = shell.results()
    assert [result["custom_id"] for result in results] == [f"r{number}" for number in range(rows)]
    assert {result["status"] for result in results} == {"succeeded"}
    assert len({result["job_id"] for result in results}) == rows


def test_after_a_kill_of_the_whole_tree_the_same_command_asks_again_only_for_what_was_in_flight(
    shell: Installation, provider: LoopbackProvider
) -> None:
    rows, delay_s = 200, 0.4
    provider.script(slow(delay_s))
    command = ("run", shell.reviews(rows), "--assistant", shell.sentiment())
    running = shell.start(*command)
    provider.wait_for_requests(80, deadline_s=30)
    killed_s = time.monotonic()
    # run, its leash-mates Valkey and Dramatiq's master, two workers, the metrics server
    assert shell.kill_all() >= 6
    assert running.process.returncode == -signal.SIGKILL
    before = provider.requests
    answered = {
        request.body["messages"][-1]["content"]
        for request in before
        if request.arrived_s + delay_s + JOURNALED_AFTER_S < killed_s
    }
    assert len(answered) >= 30

    ended = shell.run(*command)
    assert ended.code == 0, ended.err
    assert f"{rows} rows: {rows} succeeded" in ended.out
    assert_all_succeeded_once(shell, rows)
    asked = asked_rows(provider)
    assert len(set(asked)) == rows
    assert len(asked) <= rows + IN_FLIGHT_AT_MOST
    assert not answered & set(asked[len(before) :])
    shell.nothing_left()


def test_a_run_that_was_killed_alone_goes_on_at_once_and_nothing_of_it_stays(
    shell: Installation, provider: LoopbackProvider
) -> None:
    rows = 60
    provider.script(slow(0.4))
    command = ("run", shell.reviews(rows), "--assistant", shell.sentiment())
    running = shell.start(*command)
    provider.wait_for_requests(20, deadline_s=30)
    running.process.kill()
    running.process.wait()
    # Its workers still look for the queue, and find the next run's.
    assert shell.alive_with("worker.master")
    ended = shell.run(*command)
    assert ended.code == 0, ended.err
    assert_all_succeeded_once(shell, rows)
    assert provider.count <= rows + IN_FLIGHT_AT_MOST
    shell.nothing_left(timeout_s=40)


def test_a_run_outlives_a_worker_process_and_its_queue(shell: Installation, provider: LoopbackProvider) -> None:
    rows = 160
    provider.script(slow(0.4))
    running = shell.start("run", shell.reviews(rows), "--assistant", shell.sentiment())
    provider.wait_for_requests(20, deadline_s=30)
    processes = shell.alive_with("worker.master")
    pids = {process.pid for process in processes}
    # Dramatiq's master ends with any of its workers, and is started again.
    next(process for process in processes if process.ppid() in pids).kill()
    at_the_first_kill = provider.count
    provider.wait_for_requests(at_the_first_kill + 30, deadline_s=30)
    (valkey,) = shell.alive_with("valkey-server")
    valkey.kill()
    ended = running.ended()
    assert ended.code == 0, ended.err
    assert "the embedded Valkey ended (signal 9), starting it again" in ended.err
    assert_all_succeeded_once(shell, rows)
    asked = Counter(asked_rows(provider))
    assert len(asked) == rows
    # Once more at each kill, at most, for what was in flight.
    assert max(asked.values()) <= 3
    assert sum(asked.values()) <= rows + 2 * IN_FLIGHT_AT_MOST
    shell.nothing_left()


def test_the_children_of_a_run_that_was_killed_alone_end_by_themselves(orphaned: Installation) -> None:
    _, left = psutil.wait_procs(orphaned.alive(), timeout=45)
    assert not left
    assert not orphaned.alive()
    assert not orphaned.socket.exists()


def _is_worker(parent_pid: int, shell: Installation) -> bool:
    return parent_pid in {process.pid for process in shell.alive_with("worker.master")}
