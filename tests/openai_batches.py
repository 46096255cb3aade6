"""What the tests of OpenAI's batches share: files of requests, and batches to their ends."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import httpx

from tests.processes import until

URL = "/v1/chat/completions"
ENDED = {"completed", "failed", "expired", "cancelled"}


def request_line(custom_id: str, model: str, said: str, **body: Any) -> dict[str, Any]:
    """Return a line of an input file."""
    messages = [{"role": "user", "content": said}]
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": URL,
        "body": {"model": model, "messages": messages, **body},
    }


def jsonl(lines: Iterable[Any]) -> bytes:
    """Return a file of these lines: JSON values, or texts as they are."""
    return b"".join((each if isinstance(each, str) else json.dumps(each)).encode() + b"\n" for each in lines)


def upload(client: httpx.Client, content: bytes, **fields: str) -> dict[str, Any]:
    """Upload a file for a batch."""
    files = {"file": ("requests.jsonl", content)}
    answer = client.post("/v1/files", files=files, data={"purpose": "batch", **fields})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def create(client: httpx.Client, content: bytes, **fields: Any) -> dict[str, Any]:
    """Make a batch of these requests."""
    asked = {"input_file_id": upload(client, content)["id"], "endpoint": URL, "completion_window": "24h", **fields}
    answer = client.post("/v1/batches", json=asked)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def look(client: httpx.Client, batch_id: str) -> dict[str, Any]:
    """Return where the batch is."""
    return dict(client.get(f"/v1/batches/{batch_id}").raise_for_status().json())


def ended(client: httpx.Client, batch_id: str, *, timeout_s: float = 60.0) -> dict[str, Any]:
    """Return the batch at its end."""
    until(
        lambda: look(client, batch_id)["status"] in ENDED,
        what=f"batch {batch_id} ends",
        timeout_s=timeout_s,
    )
    return look(client, batch_id)


def lines_of(client: httpx.Client, file_id: str | None) -> list[dict[str, Any]]:
    """Return the lines of a file; none of no file."""
    if file_id is None:
        return []
    content = client.get(f"/v1/files/{file_id}/content").raise_for_status().content
    return [json.loads(line) for line in content.splitlines()]
