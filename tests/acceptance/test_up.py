"""`assistq up`: the whole system on this machine, and the commands that look at it."""

from __future__ import annotations

import csv
import io
import json
import signal

from tests.command_line import Ended, Installation, Running, asked_rows
from tests.loopback_provider import LoopbackProvider, Reply, default_reply

ROWS = 60


def slow(provider: LoopbackProvider, delay_s: float) -> None:
    provider.script(lambda body, n: Reply(text=default_reply(body, n).text, delay_s=delay_s))


def submitted(shell: Installation, *options: str) -> str:
    ended = shell.run("submit", shell.reviews(ROWS), "--assistant", shell.sentiment(), *options)
    assert ended.code == 0, ended.err
    (batch_id,) = ended.out.split()
    return batch_id


def at_once(shell: Installation, *commands: tuple[object, ...]) -> list[Ended]:
    """Run commands side by side: each takes most of a second to load."""
    ended = [running.ended() for running in [shell.start(*command) for command in commands]]
    for each in ended:
        assert each.code == 0, each.err
    return ended


def stop(up: Running, shell: Installation) -> None:
    up.process.send_signal(signal.SIGTERM)
    ended = up.ended()
    assert ended.code == 143, ended.err
    assert "stopping: calls in flight are finished first" in ended.err
    shell.nothing_left()


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_a_batch_is_submitted_worked_off_looked_at_and_kept_though_a_worker_was_killed(
    shell: Installation, provider: LoopbackProvider
) -> None:
    slow(provider, 0.4)
    batch_id = submitted(shell)  # for workers that come later
    waiting = shell.run("status", batch_id)
    assert waiting.code == 0
    assert "no worker runs now: start `assistq up`" in waiting.err
    assert f"0/{ROWS}" in waiting.out

    up = shell.start("up")
    watching = shell.start("status", batch_id, "--watch")
    provider.wait_for_requests(10, deadline_s=30)
    masters = shell.alive_with("worker.master")
    pids = {process.pid for process in masters}
    (master,) = (process for process in masters if process.ppid() not in pids)
    master.kill()
    up.says("worker  | ended (signal 9); starts again in 0.5 s")
    watched = watching.ended()
    assert watched.code == 0, watched.err
    assert f"{ROWS}/{ROWS}" in watched.out
    assert "completed" in watched.out
    assert "worker  | {" in up.err
    assert len(set(asked_rows(provider))) == ROWS

    status, listed, results, lines, deliveries, secret, secret_again = at_once(
        shell,
        ("status", batch_id, "--json"),
        ("status", "--json"),
        ("results", batch_id),
        ("results", batch_id, "--out", "out.jsonl"),
        ("webhooks", "list", "--json"),
        ("webhooks", "secret", "demo"),
        ("webhooks", "secret", "demo"),
    )
    assert status.json["counts"] == {"succeeded": ROWS}
    assert (status.json["state"], status.json["total"], status.json["finished"]) == ("completed", ROWS, ROWS)
    assert [{**each, "retries": []} for each in listed.json] == [status.json]
    assert [row["custom_id"] for row in rows_of(results.out)] == [f"r{number}" for number in range(ROWS)]
    assert results.err == ""
    assert lines.out == ""
    parsed = [json.loads(line) for line in (shell.directory / "out.jsonl").read_text("utf-8").splitlines()]
    assert [row["output"] for row in parsed] == [row["output"] for row in rows_of(results.out)]
    assert deliveries.json == []
    assert secret.out.startswith("whsec_")
    assert secret.out == secret_again.out

    thread_id = parsed[0]["thread_id"]
    again, applied, assistants, shown, thread, messages = at_once(
        shell,
        ("submit", shell.directory / "reviews.csv", "--assistant", "demo/reviews/sentiment"),
        ("assistants", "apply", shell.directory / "sentiment.yaml", "--json"),
        ("assistants", "list", "--json"),
        ("assistants", "show", "demo/reviews/sentiment"),
        ("threads", "show", thread_id),
        ("threads", "show", thread_id, "--json"),
    )
    assert again.out.split() == [batch_id]
    assert "nothing is enqueued" in again.err
    (unchanged,) = applied.json
    assert (unchanged["version"], unchanged["changed"]) == (1, False)
    assert assistants.json == [{"assistant": "demo/reviews/sentiment", "newest": 1, "environments": {"production": 1}}]
    assert 'assistant: {"result": "negative"}' in thread.out
    assert [message["role"] for message in messages.json] == ["assistant"]
    # What is shown is a file that says nothing new.
    shell.file("shown.yaml", shown.out)
    assert "unchanged" in shell.run("assistants", "apply", "shown.yaml").out

    stop(up, shell)
    # It is kept: also without a queue that runs.
    assert shell.run("results", batch_id).out == results.out


def test_what_is_not_there_is_one_line(shell: Installation) -> None:
    commands = {
        ("status", "nope"): "batch 'nope' is not known; `assistq status` lists the batches",
        ("results", "nope"): "batch 'nope' is not known",
        ("threads", "show", "nope"): "thread 'nope' is not known",
        ("assistants", "show", "a/b/c"): "a/b/c has no environment 'production'",
    }
    for running, message in [(shell.start(*command), message) for command, message in commands.items()]:
        ended = running.ended()
        ended.refused(message)
        assert len(ended.err.splitlines()) == 1
