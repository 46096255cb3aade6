"""A gateway that dies in the middle of a batch: the next one goes on, and nothing is lost or done twice."""

from __future__ import annotations

from collections import Counter
from typing import Any

import httpx
import pytest
from sqlalchemy import text, update
from sqlmodel import Session, col, select

from producer.subscriptions import Subscriptions
from schemas.tables import Delivery, FileChunk, OpenAIBatch, StoredFile
from tests.at_work import Scene
from tests.loopback_provider import answers
from tests.openai_batches import create, ended, jsonl, lines_of, request_line
from tests.processes import until
from tests.served_gateway import ServedGateway

# Enough that each step takes a while.
ROWS = 800
SAID = "Hi. " * 1_500
ANSWER_CHARS = 6_000


@pytest.mark.timeout(300)
def test_a_batch_outlives_gateways_that_are_killed_while_they_check_enqueue_and_write_it(
    gateway: ServedGateway, client: httpx.Client, scene: Scene
) -> None:
    scene.plays(lambda _body, _n: answers("x" * ANSWER_CHARS))
    redis = gateway.works.redis
    Subscriptions(gateway.works.engine).subscribe(scene.workspace, "http://127.0.0.1:9/")
    rows = (request_line(f"r{n}", scene.model, f"{n} {SAID}") for n in range(ROWS))
    batch_id = create(client, jsonl(rows))["id"]

    until(lambda: _row(gateway, batch_id).claims == 1, what="the file is being checked")
    _kill(gateway)
    assert _row(gateway, batch_id).in_progress_at is None
    _start_again(gateway, client, batch_id)

    until(lambda: int(redis.hget(f"aq:batch:{batch_id}", "enqueued") or 0) > 0, what="some rows are enqueued")
    _kill(gateway)
    assert int(redis.hget(f"aq:batch:{batch_id}", "enqueued")) < ROWS
    assert _row(gateway, batch_id).enqueued_at is None
    _start_again(gateway, client, batch_id)

    until(lambda: _chunks(gateway, batch_id), what="a part of the output is written", timeout_s=60)
    # Nobody can write any more, and so not the end either.
    with gateway.works.engine.connect() as connection:
        connection.execute(text("BEGIN IMMEDIATE"))
        row = _row(gateway, batch_id)
        assert (row.status, row.ended_at) == ("finalizing", None)
        _kill(gateway)
        connection.rollback()
    assert not _files(gateway, scene)
    _start_again(gateway, client, batch_id)

    batch = ended(client, batch_id)
    assert (batch["status"], batch["error_file_id"]) == ("completed", None)
    assert batch["request_counts"] == {"total": ROWS, "completed": ROWS, "failed": 0}
    custom_ids = [line["custom_id"] for line in lines_of(client, batch["output_file_id"])]
    assert custom_ids == [f"r{n}" for n in range(ROWS)]
    asked = Counter(body["messages"][-1]["content"].split()[0] for body in scene.asked)
    assert asked == {str(n): 1 for n in range(ROWS)}
    assert _files(gateway, scene) == [batch["output_file_id"]]
    assert set(_chunks(gateway, batch_id)) == {batch["output_file_id"]}
    with Session(gateway.works.engine) as session:
        deliveries = session.exec(select(Delivery).where(Delivery.batch_id == batch_id)).all()
        assert [delivery.event_type for delivery in deliveries] == ["batch.completed"]


def _kill(gateway: ServedGateway) -> None:
    assert gateway.process is not None
    gateway.process.kill()
    gateway.process.wait()


def _start_again(gateway: ServedGateway, client: httpx.Client, batch_id: str) -> None:
    """Start a gateway; the lease of the killed one is over at once."""
    with gateway.works.engine.begin() as connection:
        connection.execute(update(OpenAIBatch).where(col(OpenAIBatch.id) == batch_id).values(claimed_until=None))
    gateway.start()
    client.base_url = gateway.url


def _row(gateway: ServedGateway, batch_id: str) -> OpenAIBatch:
    with Session(gateway.works.engine) as session:
        return session.exec(select(OpenAIBatch).where(OpenAIBatch.id == batch_id)).one()


def _chunks(gateway: ServedGateway, batch_id: str) -> list[str]:
    """Return the files of the batch's answers of which there are pieces."""
    of_batch = col(FileChunk.file_id).startswith(f"file-{batch_id.removeprefix('batch_')}", autoescape=True)
    with Session(gateway.works.engine) as session:
        return list(session.exec(select(FileChunk.file_id).where(of_batch)))


def _files(gateway: ServedGateway, scene: Scene) -> list[Any]:
    of_workspace = select(StoredFile.id).where(
        StoredFile.workspace == scene.workspace, StoredFile.purpose == "batch_output"
    )
    with Session(gateway.works.engine) as session:
        return list(session.exec(of_workspace))
