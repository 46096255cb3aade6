"""Gateways that are killed -9 or stand still: what nobody waits for is not paid for, and who waits is not harmed."""

from __future__ import annotations

import http.client
import json
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import Session, select

from producer.gateway.waiters import LEASE_S
from schemas import Status, names
from schemas.lane import Lane
from schemas.tables import Job
from tests.at_work import Scene, Works, completion
from tests.loopback_provider import hang_until, streams
from tests.processes import until
from tests.served_gateway import ServedGateway

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def works(tmp_path: Path, servers_dir: Path) -> Iterator[Works]:
    """A worker whose lanes have one call in flight at a time, so that others wait for their turn."""
    (tmp_path / "lanes.yaml").write_text(
        'prices: [{model: "*", prompt: 1.00, completion: 1.00}]\nworkspaces: {capped: {spend_cap: 100}}\n'
    )
    settings = {"ASSISTQ_MAX_CONCURRENCY": "1", "ASSISTQ_LANES": str(tmp_path / "lanes.yaml")}
    with Works(tmp_path, servers_dir=servers_dir, ASSISTQ_PROCESSES="1", **settings) as works:
        yield works


@pytest.fixture
def scene(works: Works) -> Scene:
    return Scene(works, workspace="capped")


@pytest.fixture
def goes_on(scene: Scene) -> Iterator[threading.Event]:
    """Hold every reply until the event is set."""
    goes_on = threading.Event()
    scene.plays(lambda _body, _n: hang_until(goes_on, then=completion("late")))
    yield goes_on
    goes_on.set()


class Callers:
    """Callers of the scene's model who hold their connections open."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._open = ExitStack()

    def __enter__(self) -> Callers:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def ask(self, gateway: ServedGateway, *, key: str | None = None, **body: Any) -> http.client.HTTPConnection:
        """Ask for a completion, and return once its job is in the queue; `key` is an `Idempotency-Key`."""
        before = jobs_that_wait(self._scene)
        connection = self.send(gateway, key=key, **body)
        until(lambda: jobs_that_wait(self._scene) - before, what="its job is in the queue")
        (self.last_job,) = jobs_that_wait(self._scene) - before
        if not before:
            until(lambda: self._scene.asked, what="the first is with the provider")
        return connection

    def send(self, gateway: ServedGateway, *, key: str | None = None, **body: Any) -> http.client.HTTPConnection:
        """Ask for a completion."""
        host, port = gateway.url.removeprefix("http://").rsplit(":", 1)
        connection = http.client.HTTPConnection(host, int(port), timeout=60)
        self._open.callback(connection.close)
        headers = {"authorization": f"Bearer {gateway.key(self._scene.workspace)}", "content-type": "application/json"}
        headers |= {"idempotency-key": key} if key else {}
        asked = {"model": self._scene.model, "messages": [{"role": "user", "content": "Hi"}], **body}
        connection.request("POST", "/v1/chat/completions", json.dumps(asked), headers)
        return connection


@pytest.fixture
def callers(scene: Scene) -> Iterator[Callers]:
    with Callers(scene) as callers:
        yield callers


@contextmanager
def another(works: Works) -> Iterator[ServedGateway]:
    with ServedGateway(works, name="another") as gateway:
        yield gateway


def jobs_that_wait(scene: Scene) -> set[str]:
    """Return the ids of the jobs that have not ended."""
    return {key.decode().removeprefix("aq:job:") for key in scene.works.redis.keys("aq:job:*")}


def ends_of(scene: Scene) -> dict[str, Status]:
    with Session(scene.works.engine) as session:
        return {job.id: Status(job.status) for job in session.exec(select(Job).where(Job.workspace == scene.workspace))}


def is_called_off(scene: Scene, job_id: str) -> bool:
    return bool(scene.works.redis.hget(names.job(job_id), "called_off") == b"cancelled")


def said_ms(scene: Scene, job_id: str) -> float:
    """Return when a gateway said last that somebody waits for the job, on the queue's clock."""
    return float(scene.works.redis.zscore(names.WAITERS, job_id) or 0)


def nothing_is_left(scene: Scene) -> bool:
    """Return whether no job is known, waited for, or holds a place or money."""
    redis, lane = scene.works.redis, Lane(scene.workspace, "127.0.0.1", scene.model).key
    spend = [redis.hget(key, "reserved_nano") for key in redis.keys(names.spend(scene.workspace, "*"))]
    return (
        not jobs_that_wait(scene)
        and not redis.exists(names.WAITERS, f"aq:tickets:{lane}", f"aq:held:{lane}")
        and all(int(held or 0) == 0 for held in spend)
    )


@pytest.mark.parametrize("comes", ["another", "the same again"])
def test_what_a_killed_gateway_left_waiting_is_cancelled_before_it_is_paid_for(
    works: Works, scene: Scene, goes_on: threading.Event, callers: Callers, comes: str
) -> None:
    with ExitStack() as gateways:
        gateway = gateways.enter_context(ServedGateway(works))
        other = gateways.enter_context(another(works)) if comes == "another" else gateway
        callers.ask(gateway)
        sent = callers.last_job
        left = []
        for stream in (False, False, True):
            callers.ask(gateway, stream=stream)
            left.append(callers.last_job)
        callers.ask(gateway, key="k")
        findable = callers.last_job
        gateway.kill()
        if other is gateway:
            gateway.start()
        until(
            lambda: jobs_that_wait(scene) == {sent, findable} and is_called_off(scene, sent),
            what="what was left has ended",
            timeout_s=60,
        )
        assert ends_of(scene) == dict.fromkeys(left, Status.CANCELLED)
        assert not is_called_off(scene, findable)
        goes_on.set()
        again = callers.send(other, key="k").getresponse()
        assert (again.status, again.headers["x-request-id"]) == (200, findable)
        until(lambda: nothing_is_left(scene), what="nothing is left")
        assert {job_id: end for job_id, end in ends_of(scene).items() if job_id not in left} == {
            sent: Status.SUCCEEDED, findable: Status.SUCCEEDED,
        }  # fmt: skip
        assert len(scene.asked) == 2
        assert sum(event["jobs"] for event in other.logged("waiters_gone")) == len(left) + 1


def test_open_streams_of_a_killed_gateway_break_off_and_their_replies_are_finished_and_counted(
    works: Works, scene: Scene, callers: Callers
) -> None:
    goes_on = threading.Event()
    scene.plays(lambda _body, n: streams("Hel", goes_on, "lo") if n == 1 else completion("Fine."))
    try:
        with ServedGateway(works) as gateway:
            answer = callers.ask(gateway, stream=True).getresponse()
            told = b""
            while b"Hel" not in told:
                told += answer.readline()
            gateway.kill()
            with pytest.raises(http.client.IncompleteRead):
                answer.read()
            gateway.start()
            until(lambda: is_called_off(scene, callers.last_job), what="its job is called off", timeout_s=60)
            goes_on.set()
            until(lambda: nothing_is_left(scene), what="nothing is left")
            job = works.row(callers.last_job)
            assert (job.status, job.requests, job.prompt_tokens, job.completion_tokens) == ("succeeded", 1, 10, 5)
            assert not works.redis.pubsub_channels(names.done_channel("*"))
            assert callers.send(gateway).getresponse().status == 200
    finally:
        goes_on.set()


def test_a_queue_that_was_away_for_longer_than_a_lease_cancels_no_call_whose_caller_still_waits(
    works: Works, scene: Scene, goes_on: threading.Event, callers: Callers
) -> None:
    with ServedGateway(works) as late, another(works) as early:
        waiting = [callers.ask(early)]
        of_early = callers.last_job
        waiting.append(callers.ask(late))
        of_late = callers.last_job
        # Both may cancel for others by now.
        until(lambda: said_ms(scene, of_early) - enqueued_ms(scene, of_early) > LEASE_S * 1000 + 4000, what="they look",
              timeout_s=60)  # fmt: skip
        works.kill_queue()
        until(lambda: away_for(early) > timedelta(seconds=LEASE_S + 2), what="a lease is over", timeout_s=60)
        assert late.process is not None
        late.process.send_signal(signal.SIGSTOP)
        works.start_queue_again()
        early_ms, late_ms = said_ms(scene, of_early), said_ms(scene, of_late)
        # A job of nobody shows when who is early cancels for others again.
        works.redis.zadd(names.WAITERS, {"nobody's": 1})
        until(lambda: said_ms(scene, of_early) > early_ms, what="one gateway has found the queue again")
        late.process.send_signal(signal.SIGCONT)
        until(lambda: said_ms(scene, of_late) > late_ms, what="the other one has, too")
        until(lambda: not said_ms(scene, "nobody's"), what="who waits no longer is looked for again", timeout_s=60)
        assert not any(is_called_off(scene, job_id) for job_id in (of_early, of_late))
        goes_on.set()
        assert [each.getresponse().status for each in waiting] == [200, 200]
        until(lambda: nothing_is_left(scene), what="nothing is left")


def test_a_gateway_that_stood_still_for_longer_than_a_lease_tells_its_callers_that_their_jobs_are_cancelled(
    works: Works, scene: Scene, goes_on: threading.Event, callers: Callers
) -> None:
    with ServedGateway(works) as gateway, another(works):
        callers.ask(gateway)
        caller = callers.ask(gateway)
        assert gateway.process is not None
        gateway.process.send_signal(signal.SIGSTOP)
        until(lambda: ends_of(scene) == {callers.last_job: Status.CANCELLED}, what="it is cancelled", timeout_s=60)
        gateway.process.send_signal(signal.SIGCONT)
        answer = caller.getresponse()
        assert (answer.status, json.loads(answer.read())["error"]["code"]) == (409, "cancelled")
        assert len(scene.asked) == 1


def enqueued_ms(scene: Scene, job_id: str) -> int:
    return int(scene.works.redis.hget(names.job(job_id), "enqueued_ms"))


def away_for(gateway: ServedGateway) -> timedelta:
    """Return for how long the gateway has not found the queue, as it says itself."""
    times = [datetime.fromisoformat(event["ts"]) for event in gateway.logged("service_fault")]
    return times[-1] - times[0] if times else timedelta()
