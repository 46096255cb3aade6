"""`/v1/jobs`: one job over our own API."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import httpx
import pytest

from schemas import names
from tests.at_work import Scene, completion
from tests.gateway.own import ended, events, problem
from tests.loopback_provider import Reply, hang_until
from tests.processes import until
from tests.served_gateway import ServedGateway

HELLO = {"messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture
def name(scene: Scene) -> str:
    """The stored assistant, as a caller of its workspace names it."""
    scene.assistant()
    return scene.address.split("/", 1)[1]


def test_a_job_is_accepted_and_found_at_its_location_until_and_after_it_has_ended(
    client: httpx.Client, scene: Scene, name: str
) -> None:
    go_on = threading.Event()
    scene.plays(lambda _body, _n: hang_until(go_on, then=completion("Hello.")))
    accepted = client.post("/v1/jobs", json={"assistant": name, "custom_id": "mine", **HELLO})
    assert accepted.status_code == 202, accepted.text
    place = accepted.headers["location"]
    assert place == f"/v1/jobs/{accepted.json()['id']}"
    until(lambda: client.get(place).json()["status"] == "running", what="the job runs")
    go_on.set()
    job = ended(client, place)
    assert (job["status"], job["output"], job["custom_id"]) == ("succeeded", "Hello.", "mine")
    scene.works.redis.delete(names.result(job["id"]))
    in_sql = client.get(place).json()
    assert in_sql["enqueued_at"] < in_sql["finished_at"]
    assert {**in_sql, "enqueued_at": None} == job


@pytest.mark.parametrize("asked", [{"headers": {"prefer": "respond-async, wait=30"}}, {"params": {"wait_s": 30}}])
def test_who_prefers_to_wait_gets_the_end(client: httpx.Client, scene: Scene, name: str, asked: dict[str, Any]) -> None:
    scene.replies(completion("Hello."))
    answer = client.post("/v1/jobs", json={"assistant": scene.address, **HELLO}, **asked)
    assert (answer.status_code, answer.json()["output"]) == (200, "Hello.")
    assert answer.headers["preference-applied"] == "wait=30"


def test_a_failed_job_is_shown_with_its_reason_and_can_be_run_anew(
    client: httpx.Client, scene: Scene, name: str
) -> None:
    scene.replies(Reply(status=400, body=b'{"error": {"message": "no such thing"}}'), completion("Better."))
    failed = client.post("/v1/jobs?wait_s=30", json={"assistant": name, **HELLO}).json()
    assert failed["status"] == "failed"
    assert failed["error"]["code"] == "request_refused"
    again = client.post(f"/v1/jobs/{failed['id']}/retry?wait_s=30", headers={"idempotency-key": "r1"})
    assert (again.status_code, again.json()["output"]) == (200, "Better.")
    repeated = client.post(f"/v1/jobs/{failed['id']}/retry?wait_s=30", headers={"idempotency-key": "r1"})
    assert repeated.json()["id"] == again.json()["id"] != failed["id"]
    assert problem(client.post(f"/v1/jobs/{again.json()['id']}/retry")) == (409, "not_retryable")


def test_a_job_that_waits_is_called_off_and_one_that_has_ended_stays_as_it_is(
    client: httpx.Client, scene: Scene, name: str
) -> None:
    go_on = threading.Event()
    scene.plays(lambda _body, _n: hang_until(go_on, then=completion("Hello.")))
    body = {"assistant": name, "thread_id": "t", **HELLO}
    first, second = (client.post("/v1/jobs", json=body).headers["location"] for _ in range(2))
    assert client.post(f"{second}/cancel").status_code == 200
    assert ended(client, second)["status"] == "cancelled"
    go_on.set()
    assert ended(client, first)["status"] == "succeeded"
    assert client.post(f"{first}/cancel").json()["status"] == "succeeded"
    assert len(scene.asked) == 1


def test_a_repeated_request_with_its_key_is_one_job_at_once_and_after_redis_forgot_it(
    client: httpx.Client, scene: Scene, name: str
) -> None:
    scene.replies(completion("Once."))
    body = {"assistant": name, **HELLO}

    def send(_: int) -> dict[str, Any]:
        answer = client.post("/v1/jobs?wait_s=30", json=body, headers={"idempotency-key": "k"})
        return cast("dict[str, Any]", answer.json())

    with ThreadPoolExecutor(5) as pool:
        answers = list(pool.map(send, range(5)))
    assert {(each["id"], each["output"]) for each in answers} == {(answers[0]["id"], "Once.")}
    scene.works.redis.delete(names.result(answers[0]["id"]))
    assert send(0)["output"] == "Once."
    other = client.post("/v1/jobs", json={**body, "custom_id": "x"}, headers={"idempotency-key": "k"})
    assert problem(other) == (422, "idempotency_key_reused")


def test_an_inline_assistant_runs_in_the_keys_workspace(client: httpx.Client, scene: Scene) -> None:
    scene.replies(completion("Hello."))
    inline = {"name": "a", "instructions": "Help.", "model": scene.model}
    job = client.post("/v1/jobs?wait_s=30", json={"inline": inline, **HELLO}).json()
    assert (job["output"], job["assistant"]) == ("Hello.", f"{scene.workspace}/inline/inline")
    for wrong in ({**inline, "workspace": "other"}, {**inline, "tools": [{"type": "python", "name": "word_count"}]}):
        assert client.post("/v1/jobs", json={"inline": wrong, **HELLO}).status_code in {400, 403}


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, ""),
        ({"assistant": "a/b", "inline": {"name": "x"}}, ""),
        ({"assistant": "a/b", "id": "job_1"}, "id"),
        ({"assistant": "a/b", "messages": [{"role": "user"}]}, "messages[0]"),
        ({"assistant": "a/b", "webhook": "ftp://x"}, "webhook"),
        ({"assistant": "a/b", "colour": 1}, "colour"),
    ],
)
def test_what_cannot_be_a_job_is_refused_with_what_is_wrong_and_where(
    client: httpx.Client, body: Any, pointer: str
) -> None:
    answer = client.post("/v1/jobs", json=body)
    assert problem(answer) == (400, "invalid_request")
    assert answer.json()["errors"][0]["pointer"] == pointer


@pytest.fixture
def foreign(gateway: ServedGateway) -> Iterator[httpx.Client]:
    """A client of another workspace."""
    with gateway.client("foreign") as client:
        yield client


def test_another_workspace_knows_nothing_of_a_job_in_redis_or_in_sql(
    client: httpx.Client, foreign: httpx.Client, scene: Scene, name: str
) -> None:
    scene.replies(completion("Hello."))
    job_id = client.post("/v1/jobs?wait_s=30", json={"assistant": name, **HELLO}).json()["id"]
    for _ in range(2):
        for method, path in (("GET", ""), ("POST", "/cancel"), ("POST", "/retry"), ("GET", "/events")):
            assert problem(foreign.request(method, f"/v1/jobs/{job_id}{path}")) == (404, "job_unknown")
        scene.works.redis.delete(names.result(job_id))
    assert foreign.get("/v1/jobs").json() == {"data": [], "next_cursor": None}
    assert problem(foreign.post("/v1/jobs", json={"assistant": scene.address})) == (404, "assistant_unknown")


def test_a_key_that_one_assistant_is_shared_with_runs_and_sees_no_other(
    gateway: ServedGateway, client: httpx.Client, scene: Scene, name: str
) -> None:
    scene.replies(completion("Hello."))
    job_id = client.post("/v1/jobs?wait_s=30", json={"assistant": name, **HELLO}).json()["id"]
    with gateway.client(scene.workspace, assistants=[f"{scene.workspace}/tests/other"]) as narrow:
        assert problem(narrow.post("/v1/jobs", json={"assistant": name})) == (403, "assistant_not_shared")
        assert problem(narrow.post("/v1/jobs", json={"inline": {"name": "x"}})) == (403, "assistant_not_shared")
        assert problem(narrow.get(f"/v1/jobs/{job_id}")) == (404, "job_unknown")
        assert narrow.get("/v1/jobs").json()["data"] == []


def test_pages_show_each_job_once_however_many_end_meanwhile(client: httpx.Client, scene: Scene, name: str) -> None:
    scene.plays(lambda _body, _n: completion("Hello."))
    made = [client.post("/v1/jobs?wait_s=30", json={"assistant": name, **HELLO}).json()["id"] for _ in range(5)]
    first = client.get("/v1/jobs", params={"limit": 2, "status": "succeeded", "assistant": name}).json()
    client.post("/v1/jobs?wait_s=30", json={"assistant": name, **HELLO})
    second = client.get("/v1/jobs", params={"limit": 2, "cursor": first["next_cursor"]}).json()
    third = client.get("/v1/jobs", params={"limit": 2, "cursor": second["next_cursor"]}).json()
    assert third["next_cursor"] is None
    assert [job["id"] for page in (first, second, third) for job in page["data"]] == made[::-1]
    # Not JSON, and a time that there is not in UTC.
    for forged in ("no", '["0001-01-01T00:00:00+23:59", "x"]', '["2026-01-01T00:00:00", "x"]'):
        cursor = base64.urlsafe_b64encode(forged.encode()).decode()
        assert problem(client.get("/v1/jobs", params={"cursor": cursor})) == (400, "invalid_cursor")


def test_the_events_of_a_job_tell_its_states_and_its_end(client: httpx.Client, scene: Scene, name: str) -> None:
    go_on = threading.Event()
    scene.plays(lambda _body, _n: hang_until(go_on, then=completion("Hello.")))
    place = client.post("/v1/jobs", json={"assistant": name, **HELLO}).headers["location"]
    told = []
    for event, data in events(client, f"{place}/events"):
        told.append((event, data["status"]))
        if data["status"] == "running":
            go_on.set()
    assert told[-2:] == [("state", "running"), ("end", "succeeded")]


def test_the_events_of_a_streamed_job_go_on_after_the_last_one_that_was_seen(
    client: httpx.Client, scene: Scene, name: str
) -> None:
    scene.replies(completion("Hello."))
    job = client.post("/v1/jobs?wait_s=30", json={"assistant": name, "tell": "stream", **HELLO}).json()
    stream = names.parts(job["id"])
    scene.works.redis.delete(stream)
    for number, word in enumerate(("a", "b", "c"), start=1):
        part = json.dumps({"type": "text", "step": 0, "text": word})
        scene.works.redis.xadd(stream, {"part": part}, id=f"1-{number}")
    seen = list(events(client, f"/v1/jobs/{job['id']}/events"))
    assert [data.get("text", event) for event, data in seen] == ["a", "b", "c", "end"]
    rest = list(events(client, f"/v1/jobs/{job['id']}/events", headers={"last-event-id": "1-2"}))
    assert [data.get("text", event) for event, data in rest] == ["c", "end"]
    wrong = client.get(f"/v1/jobs/{job['id']}/events", headers={"last-event-id": "x"})
    assert problem(wrong) == (400, "invalid_event_id")
