"""`/v1/assistants`: storing assistants over our own API."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from producer.gateway.keys import Scope
from tests.at_work import Scene, completion
from tests.gateway.own import problem
from tests.served_gateway import ServedGateway


def config(scene: Scene, **fields: Any) -> dict[str, Any]:
    """Return what is stored."""
    return {"model": scene.model, "instructions": "Help.", **fields}


def test_an_assistant_that_is_applied_runs_is_shown_and_is_no_new_version_the_second_time(
    client: httpx.Client, scene: Scene
) -> None:
    scene.replies(completion("Hello."))
    applied = [client.put("/v1/assistants/p/a", json=config(scene)).json() for _ in range(2)]
    assert [(each["version"], each["new_version"], each["moved_from"]) for each in applied] == [
        (1, True, None),
        (1, False, 1),
    ]
    body = {"assistant": "p/a", "messages": [{"role": "user", "content": "Hi"}]}
    assert client.post("/v1/jobs?wait_s=30", json=body).json()["output"] == "Hello."
    shown = client.get("/v1/assistants/p/a").json()
    assert shown == {
        "assistant": f"{scene.workspace}/p/a",
        "version": 1,
        "environments": {"production": 1},
        "config": config(scene),
    }


def test_an_environment_is_moved_to_a_version_that_exists(client: httpx.Client, scene: Scene) -> None:
    client.put("/v1/assistants/p/a", json=config(scene))
    client.put("/v1/assistants/p/a", json=config(scene, instructions="Help more.", environment="staging"))
    moved = client.put("/v1/assistants/p/a/environments/production", json={"version": 2}).json()
    assert (moved["version"], moved["moved_from"]) == (2, 1)
    assert client.get("/v1/assistants/p/a").json()["config"]["instructions"] == "Help more."
    assert client.get("/v1/assistants/p/a?version=1").json()["config"]["instructions"] == "Help."
    for missing in (
        client.put("/v1/assistants/p/a/environments/production", json={"version": 3}),
        client.get("/v1/assistants/p/a?version=3"),
        client.get("/v1/assistants/p/a?environment=none"),
        client.get("/v1/assistants/p/b"),
    ):
        assert problem(missing) == (404, "assistant_unknown")


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"instructions": ""}, ""),
        ({"temperature": 3}, "temperature"),
        ({"instructions": "{{#if"}, "instructions"),
        ({"assistant": "x/y/z"}, "assistant"),
        ({"colour": 1}, "colour"),
    ],
)
def test_what_is_no_assistant_is_refused_with_what_is_wrong_and_where(
    client: httpx.Client, scene: Scene, fields: dict[str, Any], pointer: str
) -> None:
    answer = client.put("/v1/assistants/p/a", json=config(scene, **fields))
    assert problem(answer) == (400, "invalid_request")
    assert answer.json()["errors"][0]["pointer"] == pointer


@pytest.mark.parametrize(
    "tool",
    [
        {"type": "python", "name": "word_count"},
        {"type": "mcp", "name": "m", "command": ["sh"]},
        {"type": "http", "name": "h", "url": "https://example.com", "secret": "key"},
    ],
)
def test_no_tool_that_runs_code_or_reaches_a_secret_comes_over_http(
    client: httpx.Client, scene: Scene, tool: dict[str, Any]
) -> None:
    assert client.put("/v1/assistants/p/a", json=config(scene, tools=[tool])).status_code in {400, 403}
    assert problem(client.get("/v1/assistants/p/a")) == (404, "assistant_unknown")


def test_the_list_shows_what_the_key_may_use_and_nothing_of_another_workspace(
    gateway: ServedGateway, client: httpx.Client, scene: Scene
) -> None:
    for name in ("one", "two", "three"):
        client.put(f"/v1/assistants/p/{name}", json=config(scene))
    first = client.get("/v1/assistants?limit=2").json()
    rest = client.get("/v1/assistants", params={"limit": 2, "cursor": first["next_cursor"]}).json()
    names = [each["assistant"].rsplit("/", 1)[1] for page in (first, rest) for each in page["data"]]
    assert (names, rest["next_cursor"]) == (["three", "two", "one"], None)
    foreign = gateway.client("foreign")
    narrow = gateway.client(scene.workspace, assistants=[f"{scene.workspace}/p/one"])
    reader = gateway.client(scene.workspace, scopes=[Scope.READ])
    with foreign, narrow, reader:
        assert foreign.get("/v1/assistants").json()["data"] == []
        assert problem(foreign.get("/v1/assistants/p/one")) == (404, "assistant_unknown")
        assert len(narrow.get("/v1/assistants").json()["data"]) == 1
        assert problem(narrow.get("/v1/assistants/p/two")) == (403, "assistant_not_shared")
        assert problem(narrow.put("/v1/assistants/p/two", json=config(scene))) == (403, "assistant_not_shared")
        assert problem(reader.put("/v1/assistants/p/one", json=config(scene))) == (403, "missing_scope")
