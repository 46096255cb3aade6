"""`assistq lanes`, `pause`, `resume` and `cancel` on a queue with workers at work."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from schemas import Status
from tests.at_work import ENDS_WITHIN_S, Scene, Works
from tests.command_line import Ended, Installation
from tests.loopback_provider import answers, default_reply, hang_until
from tests.processes import until


@pytest.fixture
def command(works: Works, tmp_path: Path) -> Iterator[Installation]:
    """The command line at the queue and the database of the works."""
    with Installation(tmp_path, **works.settings, ASSISTQ_PROVIDER_BASE_URL=works.provider.base_url) as installation:
        yield installation


@contextmanager
def a_provider_that_waits(scene: Scene) -> Iterator[threading.Event]:
    """Hold every reply until the event is set, at the end at the latest."""
    goes_on = threading.Event()
    scene.plays(lambda _body, _n: hang_until(goes_on, then=answers("late")))
    try:
        yield goes_on
    finally:
        goes_on.set()
        scene.plays(default_reply)


def lane_of(scene: Scene) -> str:
    return f"{scene.workspace}/127.0.0.1/{scene.model}"


def done(ended: Ended, *parts: str) -> None:
    assert ended.code == 0, ended.err
    assert ended.out == ""
    for part in parts:
        assert part in ended.err


def its_lane(command: Installation, scene: Scene) -> dict[str, Any]:
    ended = command.run("lanes", "--json")
    assert ended.code == 0, ended.err
    (lane,) = [lane for lane in ended.json if lane["name"] == lane_of(scene)]
    return dict(lane)


def test_a_paused_batch_starts_nothing_and_says_so_until_it_is_resumed(
    works: Works, scene: Scene, command: Installation
) -> None:
    scene.assistant()
    scene.succeeds("first")
    with a_provider_that_waits(scene) as goes_on:
        batch = works.producer.enqueue_many([scene.job(f"row {row}") for row in range(100)])
        until(lambda: len(scene.asked) > 1, what="a call is in flight")
        done(command.run("pause", batch.id), f"batch {batch.id}: paused;")
        status = command.run("status", batch.id)
        assert "paused" in status.out
        assert command.run("status", batch.id, "--json").json["paused"] is True
        goes_on.set()
        until(lambda: works.redis.zcard("aq:leases") == 0, what="what ran has ended")
    asked = len(scene.asked)
    assert asked < 101
    paused = batch.status()
    assert paused is not None
    assert paused.finished == asked - 1
    done(command.run("resume", batch.id), f"batch {batch.id}: resumed; {101 - asked} jobs wait")
    assert batch.wait(timeout_s=ENDS_WITHIN_S).counts == {"succeeded": 100}


def test_a_paused_lane_is_listed_with_its_jobs_and_goes_on_when_it_is_resumed(
    works: Works, scene: Scene, command: Installation
) -> None:
    scene.assistant()
    scene.succeeds("first")
    done(command.run("pause", "--lane", lane_of(scene)), f"lane {lane_of(scene)}: paused; 0 jobs wait")
    batch = works.producer.enqueue_many([scene.job("a"), scene.job("b")])
    single = scene.enqueue("now")
    lane = its_lane(command, scene)
    assert (lane["batch"], lane["interactive"], lane["waiting"], lane["paused"]) == (2, 1, 3, True)
    listed = command.run("lanes").out
    assert lane_of(scene) in listed
    assert "paused" in listed
    assert len(scene.asked) == 1
    done(command.run("resume", "--lane", lane_of(scene)), "resumed; 3 jobs wait")
    assert batch.wait(timeout_s=ENDS_WITHIN_S).counts == {"succeeded": 2}
    assert works.results([single])[0].succeeded


def test_a_cancelled_batch_ends_with_a_result_for_every_row_and_pays_for_what_ran(
    works: Works, scene: Scene, command: Installation
) -> None:
    scene.assistant()
    scene.succeeds("first")
    with a_provider_that_waits(scene) as goes_on:
        jobs = [scene.job(f"row {row}", thread_id=f"t{row % 3}" if row % 2 else None) for row in range(100)]
        batch = works.producer.enqueue_many(jobs)
        until(lambda: len(scene.asked) > 1, what="a call is in flight")
        done(command.run("cancel", batch.id), f"batch {batch.id}: cancelled;")
        assert command.run("status", batch.id, "--json").json["cancelling"] is True
        assert "cancelling" in command.run("status", batch.id).out
        goes_on.set()
        status = batch.wait(timeout_s=ENDS_WITHIN_S)
    assert status.state == "cancelled"
    assert status.finished == 100
    assert status.requests == len(scene.asked) - 1 == status.counts[Status.SUCCEEDED]
    assert "cancelled" in command.run("status", batch.id).out
    assert command.run("results", batch.id, "--out", command.directory / "r.csv").code == 0
    rows = command.results("r.csv")
    assert [row["job_id"] for row in rows] == [f"{batch.id}.{row}" for row in range(100)]
    assert {row["status"] for row in rows} == {"succeeded", "cancelled"}
    for verb in ("pause", "resume", "cancel"):
        command.run(verb, batch.id).refused(f"batch {batch.id} has ended")


def test_cancelling_a_lane_ends_what_waits_in_it_and_not_what_comes_later(
    works: Works, scene: Scene, command: Installation
) -> None:
    scene.assistant()
    scene.succeeds("first")
    command.run("pause", "--lane", lane_of(scene))
    batch = works.producer.enqueue_many([scene.job("a"), scene.job("b", thread_id="t"), scene.job("c", thread_id="t")])
    done(command.run("cancel", "--lane", lane_of(scene)), "2 waiting jobs end without a call")
    status = batch.wait(timeout_s=ENDS_WITHIN_S)
    assert (status.state, status.counts) == ("completed", {"cancelled": 3})
    later = scene.enqueue("later")
    command.run("resume", "--lane", lane_of(scene))
    assert works.results([later])[0].succeeded
    assert len(scene.asked) == 2


@pytest.mark.parametrize("verb", ["pause", "resume", "cancel"])
def test_what_is_no_batch_and_no_lane_is_refused_in_one_line(command: Installation, verb: str) -> None:
    command.run(verb, "nobody").refused("batch 'nobody' is not known to the queue", "`assistq status` lists")
    command.run(verb, "--lane", "nobody/m1").refused("'nobody/m1' is no lane", "`assistq lanes` lists them")
    for arguments in ((), ("b", "--lane", "w/host/m")):
        ended = command.run(verb, *arguments)
        assert ended.code == 2
        assert "name a BATCH or a --lane, one of the two" in ended.err


@pytest.mark.parametrize("arguments", [("lanes",), ("pause", "b"), ("resume", "b"), ("cancel", "--lane", "w/h/m")])
def test_where_there_is_no_queue_each_says_so(shell: Installation, arguments: tuple[str, ...]) -> None:
    shell.run(*arguments).refused("there is no queue", "ASSISTQ_REDIS_URL")
    assert not shell.data_dir.exists()
