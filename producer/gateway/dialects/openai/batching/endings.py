"""How a batch ends: its last status, and the webhook deliveries that tell of it, written in one transaction."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Engine
from sqlmodel import Session, select

from producer.gateway.dialects.openai.batching.lease import Lease
from producer.gateway.dialects.openai.batching.request_lines import LineFault
from producer.gateway.dialects.openai.batching.store import BatchStatus
from schemas.batch import BatchState
from schemas.batch import BatchStatus as OurStatus
from schemas.batch_events import batch_data
from schemas.deliveries import new_delivery
from schemas.tables import Delivery, OpenAIBatch, WebhookSubscription
from schemas.webhook import Form


def end_without_rows(
    engine: Engine, batch: OpenAIBatch, lease: Lease, *, status: BatchStatus, faults: Sequence[LineFault] = ()
) -> None:
    """End a batch of which nothing was enqueued."""
    ended = OurStatus(
        batch_id=batch.id,
        workspace=batch.workspace,
        state=BatchState.CANCELLED,
        total=0,
        enqueued=0,
        created_ms=int(batch.created_at.timestamp() * 1000),
    )
    with Session(engine) as session:
        errors = [fault.told() for fault in faults] or None
        if lease.write(session, errors=errors) == BatchStatus.CANCELLING:
            status = BatchStatus.CANCELLED
        end(session, batch, lease, status=status, ended=ended)
        session.commit()


def end(
    session: Session, batch: OpenAIBatch, lease: Lease, *, status: BatchStatus, ended: OurStatus, **values: Any
) -> None:
    """Write the end, and the deliveries that tell of it, into the session's transaction; LeaseLostError as there."""
    now = datetime.now(UTC)
    lease.write(session, status=status.value, ended_at=now, claimed_until=None, **values)
    session.add_all(_deliveries(session, batch, status, ended, now))


def _deliveries(
    session: Session, batch: OpenAIBatch, status: BatchStatus, ended: OurStatus, now: datetime
) -> Iterator[Delivery]:
    of_workspace = select(WebhookSubscription).where(WebhookSubscription.workspace == batch.workspace)
    for subscription in session.exec(of_workspace):
        form = Form(subscription.form)
        data = batch_data(ended, created_at=batch.created_at, finished_at=now, form=form)
        yield new_delivery(
            id=f"evt_{batch.id}_{status}_{hashlib.sha256(subscription.url.encode()).hexdigest()[:12]}",
            workspace=batch.workspace,
            event_type=f"batch.{status}",
            url=subscription.url,
            data=data if form is Form.OPENAI else {**data, "state": status.value},
            now=now,
            form=form,
            batch_id=batch.id,
        )
