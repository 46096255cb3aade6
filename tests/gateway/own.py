"""What the tests of our own API share: its problems, its events, and how they wait for an end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx

from tests.processes import until


def problem(answer: httpx.Response) -> tuple[int, str]:
    """Return status and code of a problem, which must have RFC 9457's form."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    body = answer.json()
    assert body["status"] == answer.status_code
    assert body["detail"]
    return answer.status_code, body["code"]


def ended(client: httpx.Client, place: str) -> dict[str, Any]:
    """Wait until what is at this place has ended, and return it."""
    found: dict[str, Any] = {}

    def look() -> bool:
        found.update(client.get(place).json())
        return found.get("finished_at") is not None

    until(look, what=f"{place} has ended")
    return found


def events(client: httpx.Client, place: str, **request: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and data of each event up to the last."""
    with client.stream("GET", place, **request) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream"), answer.read()
        name = ""
        for line in answer.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                yield name, json.loads(line.removeprefix("data: "))
