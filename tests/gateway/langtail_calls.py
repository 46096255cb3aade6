"""Calls of Langtail's Invoke Assistant, as its clients make them."""

from __future__ import annotations

from typing import Any

import httpx

from tests.at_work import Scene


def invoke(client: httpx.Client, scene: Scene, body: Any, *, environment: str = "production") -> httpx.Response:
    """Invoke the scene's assistant."""
    return client.post(f"/{scene.address}/{environment}", json=body)


def invoked(
    client: httpx.Client, scene: Scene, *, messages: list[str], environment: str = "production", **body: Any
) -> httpx.Response:
    """Invoke the scene's assistant with these messages of a user, which must succeed."""
    told = [{"role": "user", "content": content} for content in messages]
    answer = invoke(client, scene, {"messages": told, **body}, environment=environment)
    assert answer.status_code == 200, answer.text
    return answer


def asked_of(client: httpx.Client, scene: Scene, body: dict[str, Any]) -> Any:
    """Invoke the scene's assistant with `Hi`, which must succeed; return what the provider was asked for last."""
    invoked(client, scene, messages=["Hi"], **body)
    return scene.asked[-1]


def thread_of(answer: httpx.Response) -> str:
    """Return the thread that the answer names."""
    return str(answer.headers["x-langtail-thread-id"])


def text_of(answer: httpx.Response) -> str:
    """Return the text of an answer, which must be a completion."""
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])
