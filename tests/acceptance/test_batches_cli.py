"""`assistq submit --expires-in` and `assistq retry` on a queue with workers at work."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import Session, select

from schemas import Status, names
from schemas.tables import Batch, Delivery
from tests.at_work import ENDS_WITHIN_S, Scene, Works, said
from tests.command_line import Installation
from tests.loopback_provider import Reply, answers, default_reply, hang_until, status
from tests.processes import until


@pytest.fixture
def command(works: Works, tmp_path: Path) -> Iterator[Installation]:
    """The command line at the queue and the database of the works."""
    with Installation(tmp_path, **works.settings, ASSISTQ_PROVIDER_BASE_URL=works.provider.base_url) as installation:
        yield installation


def messages(command: Installation, count: int) -> Path:
    """Write a file of messages `row 0`, `row 1`, …"""
    return command.file("rows.jsonl", "".join(json.dumps({"message": f"row {n}"}) + "\n" for n in range(count)))


def message_of(body: Any) -> str:
    """Return what the row says in a request."""
    _, (_, message) = said(body)
    return str(message)


def results(command: Installation, batch_id: str) -> list[tuple[str, str]]:
    """Return job id and status of each row of the results."""
    ended = command.run("results", batch_id, "--out", "r.csv")
    assert ended.code == 0, ended.err
    return [(row["job_id"], row["status"]) for row in command.results("r.csv")]


def test_a_batch_that_expires_ends_what_waits_and_what_runs_at_its_next_step_and_is_told_once(
    works: Works, scene: Scene, command: Installation
) -> None:
    scene.assistant()
    goes_on = threading.Event()
    scene.plays(lambda _body, _n: hang_until(goes_on, then=answers("late")))
    url = "http://127.0.0.1:9/hook"
    try:
        submitted = command.run(
            "submit",
            messages(command, 60),
            "--assistant",
            scene.address,
            "--expires-in",
            "1h",
            "--webhook",
            url,
            "--json",
        )
        assert submitted.code == 0, submitted.err
        batch_id = submitted.json["batch_id"]
        batch = works.producer.batch(batch_id)
        until(lambda: scene.asked, what="a call is in flight")
        # Now it is that late.
        works.redis.zadd(names.EXPIRING, {batch_id: 1})
        until(lambda: (told := batch.status()) is not None and told.finished, what="the batch expires")
        shown = command.run("status", batch_id)
        assert "expiring" in shown.out
        assert "expires" in shown.out
        goes_on.set()
        ended = batch.wait(timeout_s=ENDS_WITHIN_S)
    finally:
        goes_on.set()
        scene.plays(default_reply)
    assert (ended.state, ended.finished) == ("expired", 60)
    asked = len(scene.asked)
    assert ended.counts == {Status.SUCCEEDED: asked, Status.EXPIRED: 60 - asked}
    with Session(works.engine) as session:
        assert [row.state for row in session.exec(select(Batch).where(Batch.id == batch_id))] == ["expired"]
        events = session.exec(select(Delivery).where(Delivery.batch_id == batch_id))
        assert [row.event_type for row in events] == ["batch.expired"]
    assert command.run("status", batch_id, "--json").json["state"] == "expired"


def test_retry_runs_what_did_not_succeed_and_results_show_each_rows_last_run(
    works: Works, scene: Scene, command: Installation
) -> None:
    scene.assistant()
    refused = {"row 1", "row 3"}

    def plays(body: Any, n: int) -> Reply:
        return status(400, {"error": {"message": "no"}}) if message_of(body) in refused else default_reply(body, n)

    scene.plays(plays)
    command.run("retry", "nobody").refused("batch 'nobody' is not known")
    submitted = command.run("submit", messages(command, 5), "--assistant", scene.address)
    root = submitted.out.strip()
    assert works.producer.batch(root).wait(timeout_s=ENDS_WITHIN_S).counts == {"succeeded": 3, "failed": 2}

    refused.remove("row 1")
    retried = command.run("retry", root)
    assert (retried.code, retried.out) == (0, f"{root}_retry1\n"), retried.err
    assert f"2 rows of batch {root} run anew" in retried.err
    works.producer.batch(f"{root}_retry1").wait(timeout_s=ENDS_WITHIN_S)
    assert sorted(message_of(body) for body in scene.asked[5:]) == ["row 1", "row 3"]
    assert results(command, root) == [
        (f"{root}.0", "succeeded"),
        (f"{root}_retry1.1", "succeeded"),
        (f"{root}.2", "succeeded"),
        (f"{root}_retry1.3", "failed"),
        (f"{root}.4", "succeeded"),
    ]
    assert results(command, f"{root}_retry1") == [(f"{root}_retry1.1", "succeeded"), (f"{root}_retry1.3", "failed")]
    shown = command.run("status", root)
    assert f"{root}_retry1: completed, 2/2: 1 succeeded, 1 failed" in shown.out
    assert "retry of" in command.run("status", f"{root}_retry1").out

    refused.clear()
    second = command.run("retry", f"{root}_retry1", "--json")
    assert (second.json["batch_id"], second.json["retry_of"]) == (f"{root}_retry2", root)
    assert (second.json["total"], second.json["left_out"]) == (1, 0)
    works.producer.batch(f"{root}_retry2").wait(timeout_s=ENDS_WITHIN_S)
    assert {row_status for _, row_status in results(command, root)} == {"succeeded"}
    nothing = command.run("retry", root)
    assert (nothing.code, nothing.out) == (0, "")
    assert f"nothing to retry in batch {root}" in nothing.err
    # The file was run, and all its rows have succeeded by now.
    again = command.run("run", command.directory / "rows.jsonl", "--assistant", scene.address, "--out", "again.csv")
    assert again.code == 0, again.err
    assert "5 rows: 5 succeeded" in again.out
    assert len(scene.asked) == 8


@pytest.mark.parametrize("time", ["6", "soon", "0h", "-2h", "1.5h", "9999999d"])
def test_a_time_that_is_none_is_refused_before_anything_is_read(command: Installation, time: str) -> None:
    ended = command.run("submit", "no-such-file.csv", "--assistant", "a/b/c", f"--expires-in={time}")
    assert ended.code == 2
    assert "--expires-in" in ended.err
