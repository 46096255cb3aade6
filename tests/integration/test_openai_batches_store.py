"""OpenAI's batches in SQL: one gateway at a time works on one, and who lost it writes nothing."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, event
from sqlmodel import Session, col, select, update

from producer.gateway.access import Caller
from producer.gateway.dialects.openai.batching.endings import end_without_rows
from producer.gateway.dialects.openai.batching.lease import LEASE, CalledOffError, Lease, LeaseLostError, StoppingError
from producer.gateway.dialects.openai.batching.result_files import ResultFile
from producer.gateway.dialects.openai.batching.store import BatchStatus, NewBatch, OpenAIBatches
from producer.subscriptions import MOST_OF_A_WORKSPACE, Subscriptions
from schemas.errors import InputError
from schemas.tables import Delivery, FileChunk, OpenAIBatch
from schemas.webhook import Form


def new(workspace: str = "acme") -> NewBatch:
    return NewBatch(
        workspace=workspace,
        assistants=frozenset({"acme/a/b"}),
        input_file_id="file-1",
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"nul\0": "\ud800"},
    )


def a_caller(workspace: str = "acme") -> Caller:
    return Caller(key_id="k", workspace=workspace, scopes=frozenset(), assistants=None, rpm=None)


def claimed(engine: Engine, batch_id: str, *, now: datetime | None = None) -> OpenAIBatch:
    batch = OpenAIBatches(engine).claim(batch_id, now=now or datetime.now(UTC), lease=LEASE)
    assert batch is not None
    return batch


def test_a_batch_is_one_gateways_until_its_lease_ends_and_then_the_next_ones_alone(engine: Engine) -> None:
    store = OpenAIBatches(engine)
    batch_id = store.create(new()).id
    now = datetime.now(UTC)
    assert store.due(now, limit=10) == [batch_id]
    first = Lease(engine, claimed(engine, batch_id), threading.Event())
    assert store.due(now, limit=10) == []
    assert store.claim(batch_id, now=now, lease=LEASE) is None

    later = now + 2 * LEASE
    batch = claimed(engine, batch_id, now=later)
    assert (batch.claims, batch.assistants) == (2, ["acme/a/b"])
    second = Lease(engine, batch, threading.Event())
    with Session(engine) as session, pytest.raises(LeaseLostError):
        first.write(session, status="completed")
    first.give_back()
    file = ResultFile(engine, batch, first, kind="output")
    with pytest.raises(LeaseLostError):
        file.add({"x": "y" * 2_000_000})
    with Session(engine) as session:
        assert session.exec(select(FileChunk.file_id)).all() == []
    with pytest.raises(LeaseLostError):
        end_without_rows(engine, batch, first, status=BatchStatus.FAILED)

    Subscriptions(engine).subscribe("acme", "http://hooks.test/", form=Form.OPENAI)
    end_without_rows(engine, batch, second, status=BatchStatus.FAILED)
    with pytest.raises(LeaseLostError):
        end_without_rows(engine, batch, second, status=BatchStatus.FAILED)
    with Session(engine) as session:
        assert [each.event_type for each in session.exec(select(Delivery))] == ["batch.failed"]
    assert store.due(later + 2 * LEASE, limit=10) == []
    ended = store.get(a_caller(), batch_id)
    assert ended is not None
    assert ended.status == "failed"
    assert store.get(a_caller("other"), batch_id) is None


def test_long_work_hears_that_the_gateway_ends_and_that_the_batch_is_called_off(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, stopping = OpenAIBatches(engine), threading.Event()
    batch_id = store.create(new()).id
    monkeypatch.setattr("producer.gateway.dialects.openai.batching.lease._RENEW_EVERY_S", 0.0)
    lease = Lease(engine, claimed(engine, batch_id), stopping)
    lease.keep(while_wanted=True)
    store.call_off(batch_id)
    with pytest.raises(CalledOffError):
        lease.keep(while_wanted=True)
    lease.keep()
    stopping.set()
    with pytest.raises(StoppingError):
        lease.keep()


def test_batches_of_one_moment_are_paged_each_once(engine: Engine) -> None:
    store = OpenAIBatches(engine)
    made = [store.create(new()).id for _ in range(5)]
    store.create(new("other"))
    with engine.begin() as connection:
        connection.execute(update(OpenAIBatch).where(col(OpenAIBatch.workspace) == "acme").values(created_at=_NOON))
    seen: list[str] = []
    after, has_more = None, True
    while has_more:
        rows, has_more = store.page(a_caller(), limit=2, after=after)
        seen += [row.id for row in rows]
        after = rows[-1]
    assert sorted(seen) == sorted(made)


_NOON = datetime(2026, 1, 1, 12, tzinfo=UTC) + timedelta(microseconds=1)


def test_a_workspace_has_no_more_subscriptions_than_a_batch_can_tell(engine: Engine) -> None:
    subscriptions = Subscriptions(engine)
    for n in range(MOST_OF_A_WORKSPACE):
        subscriptions.subscribe("acme", f"http://hooks.test/{n}")
    subscriptions.subscribe("acme", "http://hooks.test/1", form=Form.ASSISTQ)
    subscriptions.subscribe("other", "http://hooks.test/1")
    with pytest.raises(InputError, match="as many as it may"):
        subscriptions.subscribe("acme", "http://hooks.test/more")
    assert len(subscriptions.of("acme")) == MOST_OF_A_WORKSPACE


def test_what_earlier_claims_wrote_is_deleted_in_short_steps_while_the_lease_is_held(engine: Engine) -> None:
    batch_id = OpenAIBatches(engine).create(new()).id
    now = datetime.now(UTC)
    for claim in range(2):
        batch = claimed(engine, batch_id, now=now + claim * 2 * LEASE)
        left = ResultFile(engine, batch, Lease(engine, batch, threading.Event()), kind="output").id
        with Session(engine) as session:
            for n in range(40):
                session.add(FileChunk(file_id=left, position=n, created_at=now, content=b"x"))
            session.commit()
    stopping = threading.Event()
    batch = claimed(engine, batch_id, now=now + 4 * LEASE)
    file = ResultFile(engine, batch, Lease(engine, batch, stopping), kind="output")
    deleted: list[int] = []

    @event.listens_for(engine, "after_cursor_execute")
    def _count(_connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("DELETE FROM file_chunks"):
            deleted.append(cursor.rowcount)
            if len(deleted) == 1:
                stopping.set()

    with pytest.raises(StoppingError):
        file.begin()
    assert len(deleted) == 1
    stopping.clear()
    file.begin()
    assert sum(deleted) == 80
    assert len(deleted) >= 4
