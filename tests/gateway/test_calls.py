"""A synchronous call over the queue that does not go well: who leaves, what takes too long, what is in the way."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlmodel import Session, select

from schemas import Status, names
from schemas.lane import Lane, LaneFault
from schemas.outcome import Code
from schemas.tables import Job
from tests.at_work import Scene, Works, completion
from tests.loopback_provider import hang_until, status
from tests.processes import until
from tests.served_gateway import ServedGateway

CAPPED = "capped"
LANES = """\
prices: [{model: "*", prompt: 1.00, completion: 1.00}]
workspaces: {capped: {spend_cap: 100}}
"""


@pytest.fixture(scope="module")
def works(servers_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Works]:
    """A worker whose lanes have one call in flight at a time, so that others wait for their turn."""
    directory = tmp_path_factory.mktemp("calls")
    (directory / "lanes.yaml").write_text(LANES)
    settings = {"ASSISTQ_MAX_CONCURRENCY": "1", "ASSISTQ_LANES": str(directory / "lanes.yaml")}
    with Works(directory, servers_dir=servers_dir, ASSISTQ_PROCESSES="1", **settings) as works:
        yield works


@pytest.fixture
def provider_holds(scene: Scene) -> Iterator[threading.Event]:
    """Hold every reply until the event is set."""
    goes_on = threading.Event()
    scene.plays(lambda _body, _n: hang_until(goes_on, then=completion("late")))
    yield goes_on
    goes_on.set()


@contextmanager
def a_caller(client: httpx.Client, scene: Scene, **body: Any) -> Iterator[http.client.HTTPConnection]:
    """Ask for a chat completion; who leaves the block closes the connection, whether or not there was an answer."""
    connection = http.client.HTTPConnection(client.base_url.host, client.base_url.port, timeout=60)
    headers = {"authorization": client.headers["authorization"], "content-type": "application/json"}
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(asked(scene, **body)), headers)
        yield connection
    finally:
        connection.close()


def asked(scene: Scene, **body: Any) -> dict[str, Any]:
    return {"model": scene.model, "messages": [{"role": "user", "content": "Hi"}], **body}


def lane_of(scene: Scene) -> str:
    return Lane(scene.workspace, "127.0.0.1", scene.model).key


def jobs_of(scene: Scene) -> list[Job]:
    """Return the workspace's jobs that have ended."""
    with Session(scene.works.engine) as session:
        return list(session.exec(select(Job).where(Job.workspace == scene.workspace)))


def nothing_is_reserved(scene: Scene) -> bool:
    """Return whether no job of the lane waits, holds a place or money, or is known at all."""
    redis, lane = scene.works.redis, lane_of(scene)
    spend = [redis.hget(key, "reserved_nano") for key in redis.keys(names.spend(scene.workspace, "*"))]
    return (
        not redis.keys("aq:job:*")
        and not redis.llen(f"aq:tickets:{lane}")
        and not redis.hlen(f"aq:held:{lane}")
        and all(int(held or 0) == 0 for held in spend)
    )


def waits(scene: Scene, *, jobs: int) -> None:
    """Return once there are this many jobs, of which one is with the provider."""
    until(lambda: len(scene.works.redis.keys("aq:job:*")) == jobs and len(scene.asked) == 1, what="the others wait")


def test_who_leaves_while_the_job_waits_for_its_turn_costs_no_call_and_leaves_nothing_reserved(
    works: Works, gateway: ServedGateway
) -> None:
    scene, goes_on = Scene(works, workspace=CAPPED), threading.Event()
    scene.plays(lambda _body, _n: hang_until(goes_on, then=completion("late")))
    with gateway.client(CAPPED) as client, a_caller(client, scene) as first:
        waits(scene, jobs=1)
        with a_caller(client, scene), a_caller(client, scene):
            waits(scene, jobs=3)
        until(lambda: len(jobs_of(scene)) == 2, what="the jobs of those who left have ended")
        assert {job.status for job in jobs_of(scene)} == {Status.CANCELLED}
        goes_on.set()
        assert first.getresponse().status == 200
    assert len(scene.asked) == 1
    until(lambda: nothing_is_reserved(scene), what="nothing is reserved")


def test_a_call_in_flight_whose_caller_left_is_finished_and_counted(
    client: httpx.Client, scene: Scene, provider_holds: threading.Event
) -> None:
    with a_caller(client, scene):
        waits(scene, jobs=1)
    (key,) = scene.works.redis.keys("aq:job:*")
    until(lambda: scene.works.redis.hget(key, "called_off") == b"cancelled", what="the job is cancelled")
    provider_holds.set()
    until(lambda: jobs_of(scene), what="the job has ended")
    (job,) = jobs_of(scene)
    assert (job.status, job.requests, job.prompt_tokens, job.completion_tokens) == (Status.SUCCEEDED, 1, 10, 5)
    until(lambda: nothing_is_reserved(scene), what="nothing is reserved")


def test_a_job_that_takes_longer_than_its_caller_may_wait_is_cancelled_and_told_in_the_dialects_form(
    works: Works, scene: Scene, provider_holds: threading.Event
) -> None:
    with ServedGateway(works, ASSISTQ_HTTP_TIMEOUT_S="0.5") as gateway, gateway.client(scene.workspace) as client:
        answer = client.post("/v1/chat/completions", json=asked(scene))
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timed_out")
        (key,) = works.redis.keys("aq:job:*")
        until(lambda: works.redis.hget(key, "called_off") == b"cancelled", what="the job is cancelled")


def test_a_wall_is_told_at_once_with_the_time_after_which_it_is_tried_again(client: httpx.Client, scene: Scene) -> None:
    scene.plays(lambda _body, _n: status(401, {"error": {"message": "Incorrect API key: sk-secret"}}))
    answer = client.post("/v1/chat/completions", json=asked(scene))
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "key_refused")
    assert 1 <= int(answer.headers["retry-after"]) <= 31
    assert "sk-secret" not in answer.text
    until(lambda: [job.status for job in jobs_of(scene)] == [Status.CANCELLED], what="its job is cancelled")
    again = client.post("/v1/chat/completions", json=asked(scene))
    assert (again.status_code, len(scene.asked)) == (503, 1)
    until(lambda: nothing_is_reserved(scene), what="nothing is reserved")


def test_an_unknown_model_is_not_found(client: httpx.Client, scene: Scene) -> None:
    scene.plays(lambda _body, _n: status(404, {"error": {"message": "no such model", "code": "model_not_found"}}))
    answer = client.post("/v1/chat/completions", json=asked(scene))
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_unknown")
    assert "no such model" in answer.json()["error"]["message"]


def test_a_wall_whose_time_is_over_is_tried_by_who_comes_next(client: httpx.Client, scene: Scene) -> None:
    redis, lane = scene.works.redis, lane_of(scene)
    scene.replies(completion("first"), completion("It is back."))
    assert client.post("/v1/chat/completions", json=asked(scene)).status_code == 200
    fault = LaneFault(workspace=scene.workspace, code=Code.PROVIDER_UNREACHABLE, reason="no", since_ms=1, count=1)
    redis.hset(names.FAULTS, lane, fault.model_dump_json())
    answer = client.post("/v1/chat/completions", json=asked(scene))
    assert answer.json()["choices"][0]["message"]["content"] == "It is back."
    assert not redis.hexists(names.FAULTS, lane)


def test_a_provider_that_is_back_answers_calls_again_by_itself(
    client: httpx.Client, scene: Scene, works: Works
) -> None:
    scene.plays(lambda _body, _n: completion("It is back."))
    with works.provider_away():
        answer = client.post("/v1/chat/completions", json=asked(scene))
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "provider_unreachable")

    def answered() -> bool:
        return client.post("/v1/chat/completions", json=asked(scene)).status_code == 200

    until(answered, what="a call finds the provider")


def test_a_paused_lane_is_told_and_a_job_that_is_in_it_goes_on(
    client: httpx.Client, scene: Scene, works: Works, provider_holds: threading.Event
) -> None:
    with a_caller(client, scene) as first:
        waits(scene, jobs=1)
        works.producer.lanes.stop("pause", "lane", lane_of(scene))
        answer = client.post("/v1/chat/completions", json=asked(scene))
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "lane_paused")
        provider_holds.set()
        assert first.getresponse().status == 200
    works.producer.lanes.stop("resume", "lane", lane_of(scene))


def test_a_gateway_that_shuts_down_waits_for_what_is_nearly_done_and_cancels_the_rest(
    works: Works, scene: Scene, provider_holds: threading.Event
) -> None:
    with ServedGateway(works, ASSISTQ_SHUTDOWN_GRACE_S="1") as gateway, gateway.client(scene.workspace) as client:
        with a_caller(client, scene) as caller:
            waits(scene, jobs=1)
            assert gateway.process is not None
            gateway.process.terminate()
            answer = caller.getresponse()
            body = json.loads(answer.read())
            assert (answer.status, body["error"]["code"]) == (503, "shutting_down")
            assert answer.headers["retry-after"] == "1"
        gateway.process.wait(15)
    (key,) = works.redis.keys("aq:job:*")
    assert works.redis.hget(key, "called_off") == b"cancelled"


def test_without_any_worker_a_caller_is_told_so(works: Works, gateway: ServedGateway) -> None:
    scene = Scene(works)
    works.kill()
    try:
        with gateway.client(scene.workspace) as client:
            answer = client.post("/v1/chat/completions", json=asked(scene))
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_workers")
        assert answer.headers["retry-after"] == "10"
    finally:
        works.start()
    until(lambda: [job.status for job in jobs_of(scene)] == [Status.CANCELLED], what="its job is cancelled")
