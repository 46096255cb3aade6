"""`/v1/threads`: conversations over our own API."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.at_work import Scene, completion
from tests.gateway.own import problem
from tests.served_gateway import ServedGateway


@pytest.fixture
def name(scene: Scene) -> str:
    """The stored assistant, which says Hello."""
    scene.assistant()
    scene.plays(lambda _body, _n: completion("Hello."))
    return scene.address.split("/", 1)[1]


def say(client: httpx.Client, name: str, thread_id: str) -> None:
    """Say something in the thread."""
    body = {"assistant": name, "thread_id": thread_id, "messages": [{"role": "user", "content": "Hi"}]}
    assert client.post("/v1/jobs?wait_s=30", json=body).json()["status"] == "succeeded"


def test_a_thread_is_listed_and_shown_with_its_messages_in_order(client: httpx.Client, name: str) -> None:
    for thread_id in ("t1", "t2", "t1"):
        say(client, name, thread_id)
    assert [thread["id"] for thread in client.get("/v1/threads").json()["data"]] == ["t2", "t1"]
    assert client.get("/v1/threads/t1").json()["id"] == "t1"
    found: list[dict[str, Any]] = []
    page: dict[str, Any] = {"next_cursor": None}
    while page["next_cursor"] or not found:
        cursor = {"cursor": page["next_cursor"]} if page["next_cursor"] else {}
        page = client.get("/v1/threads/t1/messages", params={"limit": 3, **cursor}).json()
        found += page["data"]
    assert [each["message"]["role"] for each in found] == ["user", "assistant"] * 2
    assert found[1]["message"]["content"] == "Hello."
    other_list = client.get("/v1/threads?limit=1").json()["next_cursor"]
    assert problem(client.get("/v1/threads/t1/messages", params={"cursor": other_list})) == (400, "invalid_cursor")


def test_a_thread_that_is_deleted_is_gone_with_its_messages(client: httpx.Client, name: str) -> None:
    say(client, name, "t")
    assert client.delete("/v1/threads/t").status_code == 204
    for method, path in (("GET", ""), ("GET", "/messages"), ("DELETE", "")):
        assert problem(client.request(method, f"/v1/threads/t{path}")) == (404, "thread_unknown")
    assert client.get("/v1/threads").json()["data"] == []


def test_another_workspace_and_a_key_without_the_assistant_know_nothing_of_a_thread(
    gateway: ServedGateway, client: httpx.Client, scene: Scene, name: str
) -> None:
    say(client, name, "t")
    foreign = gateway.client("foreign")
    narrow = gateway.client(scene.workspace, assistants=[f"{scene.workspace}/tests/other"])
    shared = gateway.client(scene.workspace, assistants=[scene.address])
    with foreign, narrow, shared:
        for stranger in (foreign, narrow):
            for method, path in (("GET", ""), ("GET", "/messages"), ("DELETE", "")):
                assert problem(stranger.request(method, f"/v1/threads/t{path}")) == (404, "thread_unknown")
            assert stranger.get("/v1/threads").json()["data"] == []
        assert shared.get("/v1/threads/t").status_code == 200
