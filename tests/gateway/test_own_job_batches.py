"""`/v1/job-batches`: many jobs over our own API."""

from __future__ import annotations

import csv
import io
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from sqlalchemy import delete
from sqlmodel import col

from schemas import names
from schemas.tables import Batch
from tests.at_work import Scene, completion
from tests.gateway.own import events, problem
from tests.loopback_provider import Reply, hang_until
from tests.processes import until
from tests.served_gateway import ServedGateway

CSV = "custom_id,word\na,one\nb,two\n"


@pytest.fixture
def name(scene: Scene) -> str:
    """The stored assistant, as a caller of its workspace names it; it answers with the word that it is told."""
    scene.assistant(template=[{"role": "user", "content": "{{ word }}"}])
    scene.plays(lambda body, _n: completion(body["messages"][-1]["content"].upper()))
    return scene.address.split("/", 1)[1]


def finished(client: httpx.Client, place: str) -> dict[str, Any]:
    """Return the last event of the batch."""
    *_, (event, batch) = events(client, f"{place}/events")
    assert event == "end"
    return batch


def results(client: httpx.Client, place: str) -> list[dict[str, Any]]:
    """Download the batch's results."""
    return [json.loads(line) for line in client.get(f"{place}/results").text.splitlines()]


def upload(client: httpx.Client, body: Any, name: str, **more: Any) -> httpx.Response:
    """Send a CSV as the body."""
    headers = {"content-type": "text/csv", **more.pop("headers", {})}
    return client.post("/v1/job-batches", content=body, headers=headers, params={"assistant": name, **more})


def test_a_batch_of_json_is_enqueued_ends_and_has_results_in_order(client: httpx.Client, name: str) -> None:
    jobs: list[dict[str, Any]] = [{"variables": {"word": word}, "custom_id": word} for word in ("one", "two", "three")]
    jobs[1]["assistant"] = name
    answer = client.post("/v1/job-batches", json={"assistant": name, "jobs": jobs, "label": "mine"})
    assert answer.status_code == 202, answer.text
    place = answer.headers["location"]
    batch = finished(client, place)
    assert (batch["status"], batch["total"], batch["counts"]) == ("completed", 3, {"succeeded": 3})
    assert batch["label"] == "mine"
    assert [(row["custom_id"], row["output"]) for row in results(client, place)] == [
        ("one", "ONE"),
        ("two", "TWO"),
        ("three", "THREE"),
    ]
    table = client.get(f"{place}/results", params={"format": "csv"})
    assert table.headers["content-type"].startswith("text/csv")
    assert [row["output"] for row in csv.DictReader(io.StringIO(table.text))] == ["ONE", "TWO", "THREE"]


@pytest.mark.parametrize(
    "sent",
    [
        {"content": CSV, "headers": {"content-type": "text/csv"}},
        {
            "content": '{"custom_id": "a", "word": "one"}\n{"custom_id": "b", "word": "two"}\n',
            "headers": {"content-type": "application/x-ndjson"},
        },
        {"files": {"file": ("words.csv", CSV, "application/octet-stream")}},
    ],
)
def test_a_file_of_rows_becomes_a_batch(client: httpx.Client, name: str, sent: dict[str, Any]) -> None:
    answer = client.post("/v1/job-batches", params={"assistant": name, "expires_in": "2h"}, **sent)
    assert answer.status_code == 202, answer.text
    assert answer.json()["expires_at"] is not None
    finished(client, answer.headers["location"])
    found = results(client, answer.headers["location"])
    assert [(row["custom_id"], row["output"]) for row in found] == [("a", "ONE"), ("b", "TWO")]


def test_a_form_may_say_the_parameters_in_its_fields(client: httpx.Client, name: str) -> None:
    fields = {"assistant": name, "label": "said", "skip_bad_rows": "true"}
    answer = client.post("/v1/job-batches", data=fields, files={"file": ("words.csv", CSV + "c\n", "text/csv")})
    assert (answer.status_code, answer.json()["label"]) == (202, "said")
    finished(client, answer.headers["location"])
    bad = results(client, answer.headers["location"])[2]
    assert (bad["status"], bad["error_code"]) == ("failed", "bad_row")
    assert bad["error"].startswith("words.csv:4, column 'word'")


def test_bad_rows_are_named_by_line_and_column_and_nothing_is_enqueued(
    client: httpx.Client, scene: Scene, name: str
) -> None:
    rows = "".join(f"r{number}\n" for number in range(150))
    answer = upload(client, CSV + rows, name)
    assert problem(answer) == (400, "bad_rows")
    faults = answer.json()["errors"]
    assert len(faults) == 100
    assert (faults[0]["line"], faults[0]["column"]) == (4, "word")
    assert "150 of 152 rows" in answer.json()["detail"]
    assert "/" not in answer.json()["detail"].replace(name, "")
    assert client.get("/v1/job-batches").json()["data"] == []
    assert not scene.asked


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"custom_id,other\na,b\n", "bad_rows"),
        (b"", "bad_rows"),
        (b"custom_id,word\na,\xff\xfe\n", "bad_rows"),
        (b"custom_id,word\na,\x00\n", "bad_rows"),
    ],
)
def test_a_file_that_is_no_table_for_the_assistant_is_refused(
    client: httpx.Client, name: str, body: bytes, code: str
) -> None:
    assert problem(upload(client, body, name)) == (400, code)


def test_other_bodies_are_refused_with_what_to_send(client: httpx.Client, name: str) -> None:
    assert problem(client.post("/v1/job-batches", content=b"x", headers={"content-type": "image/png"})) == (
        415,
        "unsupported_media_type",
    )
    no_boundary = client.post("/v1/job-batches", content=b"x", headers={"content-type": "multipart/form-data"})
    assert problem(no_boundary)[0] == 400
    assert problem(client.post("/v1/job-batches", files={"other": ("a.csv", CSV)})) == (400, "file_missing")
    for body in (b"{", b'{"jobs": []}', b'{"jobs": [{}]}', b'{"jobs": [{"assistant": 3}]}', b"\xff"):
        answer = client.post("/v1/job-batches", content=body, headers={"content-type": "application/json"})
        assert problem(answer) == (400, "invalid_request")
    assert problem(upload(client, CSV, "no/such")) == (404, "assistant_unknown")
    assert problem(upload(client, CSV, name, webhook="nowhere")) == (400, "invalid_request")
    assert problem(upload(client, CSV, name, expires_in="soon")) == (400, "invalid_request")


def test_a_file_that_is_too_large_is_refused_before_and_while_it_comes(
    gateway: ServedGateway, scene: Scene, name: str
) -> None:
    large = CSV + "c,x\n" * 1000
    with (
        ServedGateway(gateway.works, ASSISTQ_HTTP_MAX_UPLOAD_BYTES="2000") as small,
        small.client(scene.workspace) as client,
    ):
        for body in (large, iter([large.encode()])):
            assert problem(upload(client, body, name)) == (413, "body_too_large")
        assert problem(client.post("/v1/job-batches", files={"file": ("a.csv", large)})) == (413, "body_too_large")


def test_an_upload_that_breaks_off_enqueues_nothing_and_the_gateway_goes_on(
    gateway: ServedGateway, client: httpx.Client, scene: Scene, name: str
) -> None:
    url = httpx.URL(gateway.url)
    head = (
        f"POST /v1/job-batches?assistant={name} HTTP/1.1\r\nhost: x\r\ncontent-type: text/csv\r\n"
        f"authorization: {client.headers['authorization']}\r\ncontent-length: 1000000\r\n\r\n{CSV}"
    )
    with socket.create_connection((url.host, url.port or 80)) as connection:
        connection.sendall(head.encode())
    assert upload(client, CSV, name).status_code == 202
    assert len(client.get("/v1/job-batches").json()["data"]) == 1


def test_an_upload_that_is_repeated_with_its_key_is_one_batch(client: httpx.Client, scene: Scene, name: str) -> None:
    first, second = (upload(client, CSV, name, headers={"idempotency-key": "u1"}) for _ in range(2))
    assert first.json()["id"] == second.json()["id"]
    finished(client, first.headers["location"])
    scene.works.redis.delete(names.batch(first.json()["id"]))
    third = upload(client, CSV, name, headers={"idempotency-key": "u1"})
    assert (third.status_code, third.json()["id"]) == (200, first.json()["id"])
    assert len(scene.asked) == 2
    other = upload(client, CSV + "c,x\n", name, headers={"idempotency-key": "u1"})
    assert problem(other) == (422, "idempotency_key_reused")


def test_an_interrupted_submission_with_a_key_goes_on_where_it_was(
    client: httpx.Client, scene: Scene, name: str
) -> None:
    made = upload(client, CSV, name, headers={"idempotency-key": "u2"}).json()["id"]
    finished(client, f"/v1/job-batches/{made}")
    # As if the gateway had died before it sealed the batch, its rows being enqueued.
    scene.works.redis.hdel(names.batch(made), "total", "state")
    with scene.works.engine.begin() as connection:
        connection.execute(delete(Batch).where(col(Batch.id) == made))
    again = upload(client, CSV, name, headers={"idempotency-key": "u2"})
    assert again.json()["id"] == made
    assert finished(client, f"/v1/job-batches/{made}")["total"] == 2
    assert len(scene.asked) == 2


def test_a_batch_can_be_called_off_while_it_runs_and_its_results_so_far_downloaded(
    client: httpx.Client, scene: Scene, name: str
) -> None:
    go_on = threading.Event()

    def script(body: Any, _n: int) -> Reply:
        # The template's; behind it stands what the thread's other jobs said.
        word = next(message["content"] for message in body["messages"] if message["role"] == "user")
        return completion(word) if word == "one" else hang_until(go_on, then=completion(word))

    scene.plays(script)
    # One thread: the second runs, the third waits for it.
    text = "custom_id,word,thread_id\na,one,t\nb,two,t\nc,three,t\n"
    place = upload(client, text, name).headers["location"]
    until(lambda: len(results(client, place)) == 1, what="the first result can be downloaded")
    until(lambda: len(scene.asked) == 2, what="the second runs")
    running = client.get(place).json()
    assert (running["status"], running["finished"]) == ("running", 1)
    assert problem(client.post(f"{place}/retry")) == (409, "not_retryable")
    assert client.post(f"{place}/cancel").json()["cancelling"]
    go_on.set()
    assert finished(client, place)["status"] == "cancelled"
    assert results(client, place)[2]["status"] == "cancelled"
    assert client.post(f"{place}/cancel").json()["status"] == "cancelled"


def test_rows_that_failed_are_run_anew_as_another_batch_once_for_each_key(
    client: httpx.Client, scene: Scene, name: str
) -> None:
    good = threading.Event()

    def script(body: Any, _n: int) -> Reply:
        word = body["messages"][-1]["content"]
        return completion(word) if good.is_set() or word == "one" else Reply(status=400, body=b"{}")

    scene.plays(script)
    place = upload(client, CSV, name).headers["location"]
    assert finished(client, place)["counts"] == {"succeeded": 1, "failed": 1}
    good.set()
    again = [client.post(f"{place}/retry", headers={"idempotency-key": "r"}) for _ in range(2)]
    assert [each.status_code for each in again] in ([202, 202], [202, 200]), [each.text for each in again]
    assert again[0].json()["id"] == again[1].json()["id"]
    assert finished(client, again[0].headers["location"])["retry_of"] == place.rsplit("/", 1)[1]
    assert [row["output"] for row in results(client, place)] == ["one", "two"]
    assert problem(client.post(f"{place}/retry")) == (409, "not_retryable")


@pytest.fixture
def foreign(gateway: ServedGateway) -> Iterator[httpx.Client]:
    """A client of another workspace."""
    with gateway.client("foreign") as client:
        yield client


def test_another_workspace_and_a_key_without_the_assistant_know_nothing_of_a_batch(
    gateway: ServedGateway, client: httpx.Client, foreign: httpx.Client, scene: Scene, name: str
) -> None:
    place = upload(client, CSV, name).headers["location"]
    finished(client, place)
    shared = gateway.client(scene.workspace, assistants=[scene.address])
    narrow = gateway.client(scene.workspace, assistants=[f"{scene.workspace}/tests/other"])
    with shared, narrow:
        for stranger in (foreign, narrow):
            for method, path in (
                ("GET", ""),
                ("GET", "/results"),
                ("GET", "/events"),
                ("POST", "/cancel"),
                ("POST", "/retry"),
            ):
                assert problem(stranger.request(method, f"{place}{path}")) == (404, "batch_unknown")
            assert stranger.get("/v1/job-batches").json()["data"] == []
        assert shared.get(place).status_code == 200
        assert len(shared.get("/v1/job-batches").json()["data"]) == 1
        assert problem(upload(narrow, CSV, name)) == (403, "assistant_not_shared")
        assert problem(upload(foreign, CSV, scene.address)) == (404, "assistant_unknown")


def test_pages_show_running_and_ended_batches_latest_first(client: httpx.Client, scene: Scene, name: str) -> None:
    places = [upload(client, CSV, name).headers["location"] for _ in range(3)]
    for place in places:
        finished(client, place)
    go_on = threading.Event()
    scene.plays(lambda _body, _n: hang_until(go_on, then=completion("late")))
    places += [upload(client, CSV, name).headers["location"] for _ in range(2)]
    found: list[str] = []
    cursor = None
    while cursor is not None or not found:
        page = client.get("/v1/job-batches", params={"limit": 2, **({"cursor": cursor} if cursor else {})}).json()
        found += [f"/v1/job-batches/{batch['id']}" for batch in page["data"]]
        cursor = page["next_cursor"]
    go_on.set()
    assert found == places[::-1]
