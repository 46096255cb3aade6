"""OpenAI's own client and its batch example against the gateway, unmodified."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types import Batch

from producer.records import Records
from producer.subscriptions import Subscriptions
from schemas.webhook import Form
from tests.acceptance.test_webhook import receiver
from tests.at_work import AT_HOME, Scene, Works
from tests.loopback_provider import Reply, answers, hang_until, status
from tests.openai_batches import ENDED, jsonl, request_line
from tests.processes import until
from tests.served_gateway import ServedGateway


@pytest.fixture(scope="module")
def gateway(works: Works) -> Iterator[ServedGateway]:
    """The gateway in front of the worker."""
    with ServedGateway(works) as served:
        yield served


@pytest.fixture
def scene(works: Works) -> Scene:
    """A scene whose webhooks may reach this machine."""
    return Scene(works, workspace=AT_HOME)


@pytest.fixture
def client(gateway: ServedGateway) -> Iterator[OpenAI]:
    """OpenAI's client, of which only the base URL and the keys are not OpenAI's."""
    secret = Records(gateway.works.engine).signing_secret(AT_HOME)
    key = gateway.key(AT_HOME)
    with OpenAI(base_url=f"{gateway.url}/v1", api_key=key, webhook_secret=secret) as client:
        yield client


def _ended(client: OpenAI, batch: Batch) -> Batch:
    until(lambda: client.batches.retrieve(batch.id).status in ENDED, what="the batch ends", timeout_s=60)
    return client.batches.retrieve(batch.id)


def _batch(client: OpenAI, content: bytes) -> Batch:
    file = client.files.create(file=("requests.jsonl", content), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")


def test_openais_batch_example_runs_to_its_end(client: OpenAI, scene: Scene, tmp_path: Path) -> None:
    def script(body: Any, _n: int) -> Reply:
        text = body["messages"][-1]["content"]
        return status(400, {"error": {"message": "no such thing"}}) if text == "fail" else answers(f"Echo: {text}")

    scene.plays(script)
    # As in OpenAI's guide: prepare, upload, create, check, retrieve.
    path = tmp_path / "batchinput.jsonl"
    said = ["Hello world!", "fail", "Grüße 🌍"]
    path.write_bytes(jsonl(request_line(f"request-{n}", scene.model, text) for n, text in enumerate(said, 1)))
    with path.open("rb") as opened:
        batch_input_file = client.files.create(
            file=opened, purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
        )
    assert batch_input_file.filename == "batchinput.jsonl"
    created = client.batches.create(
        input_file_id=batch_input_file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"description": "nightly eval job"},
        output_expires_after={"anchor": "created_at", "seconds": 7200},
    )
    assert (created.object, created.status) == ("batch", "validating")
    batch = _ended(client, created)
    assert (batch.status, batch.metadata) == ("completed", {"description": "nightly eval job"})
    assert batch.request_counts is not None
    assert batch.request_counts.model_dump() == {"total": 3, "completed": 2, "failed": 1}
    assert batch.usage is not None
    assert batch.usage.total_tokens == batch.usage.input_tokens + batch.usage.output_tokens > 0
    assert batch.output_file_id is not None
    assert batch.error_file_id is not None
    told = {}
    for line in client.files.content(batch.output_file_id).text.splitlines():
        result = json.loads(line)
        told[result["custom_id"]] = result["response"]["body"]["choices"][0]["message"]["content"]
    assert told == {"request-1": "Echo: Hello world!", "request-3": "Echo: Grüße 🌍"}
    (failed,) = map(json.loads, client.files.content(batch.error_file_id).text.splitlines())
    assert (failed["custom_id"], failed["response"]["status_code"]) == ("request-2", 400)
    output = client.files.retrieve(batch.output_file_id)
    assert (output.purpose, output.expires_at) == ("batch_output", output.created_at + 7200)

    assert batch.id in [each.id for each in client.batches.list(limit=1)]
    files = {each.id for each in client.files.list(limit=1)}
    assert {batch_input_file.id, batch.output_file_id, batch.error_file_id} <= files
    assert client.files.delete(batch.output_file_id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.content(batch.output_file_id)


def test_a_cancelled_batch_and_an_invalid_file_end_as_openai_says_and_their_webhooks_are_unwrapped(
    client: OpenAI, scene: Scene, gateway: ServedGateway
) -> None:
    subscriptions = Subscriptions(gateway.works.engine)
    held = threading.Event()
    scene.plays(lambda _body, _n: hang_until(held))
    with receiver() as (url, received):
        subscriptions.subscribe(AT_HOME, url, form=Form.OPENAI)
        subscriptions.subscribe(AT_HOME, f"{url}/ours", form=Form.ASSISTQ)
        try:
            invalid = _ended(client, _batch(client, b'{"custom_id": "1"}\nnonsense\n'))
            running = _batch(client, jsonl(request_line(str(n), scene.model, "Hi") for n in range(3)))
            until(lambda: scene.asked, what="the batch runs")
            assert client.batches.cancel(running.id).status == "cancelling"
            held.set()
            cancelled = _ended(client, running)
            scene.plays(lambda _body, _n: answers("done"))
            completed = _ended(client, _batch(client, jsonl([request_line("1", scene.model, "Hi")])))
            until(lambda: len(received) == 6, what="each end is told to both")
            # A batch that was not made over HTTP, and names the endpoint itself.
            scene.assistant()
            own = gateway.works.producer.enqueue_many([scene.job("Hi")], webhook=url)
            until(lambda: len(received) == 7, what="its end is told to the one that it names")
        finally:
            held.set()
            for each in subscriptions.of(AT_HOME):
                subscriptions.unsubscribe(AT_HOME, each.url)
    assert (invalid.status, cancelled.status, completed.status) == ("failed", "cancelled", "completed")
    assert invalid.errors is not None
    assert [fault.line for fault in invalid.errors.data or []] == [1, 2]
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(completed.id)

    events = {}
    headers, body = received.pop()
    assert client.webhooks.unwrap(body, headers).data.id == own.id  # type: ignore[union-attr]
    for headers, body in received:
        if "object" in json.loads(body):
            event = client.webhooks.unwrap(body, headers)
            events[event.type] = event.data.id  # type: ignore[union-attr]
            assert event.id == headers["webhook-id"]
    assert events == {
        "batch.failed": invalid.id,
        "batch.cancelled": cancelled.id,
        "batch.completed": completed.id,
    }
    ours = [json.loads(body) for _, body in received if "object" not in json.loads(body)]
    assert {(event["type"], event["data"]["batch_id"]) for event in ours} == set(events.items())
