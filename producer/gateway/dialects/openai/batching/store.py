"""The table of OpenAI's batches: made, looked at, called off, claimed."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import Engine, exists, func, update
from sqlmodel import Session, and_, col, or_, select

from producer.gateway.access import Caller
from producer.gateway.sharing import made_within, within
from schemas.tables import Batch, OpenAIBatch

COMPLETION_WINDOW = timedelta(hours=24)


class BatchStatus(StrEnum):
    """Where OpenAI says that a batch is."""

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


_CAN_BE_CANCELLED = (BatchStatus.VALIDATING.value, BatchStatus.IN_PROGRESS.value)


@dataclass(frozen=True, slots=True)
class NewBatch:
    """What a caller asks for; `assistants` are those that its key may use, None all of its workspace."""

    workspace: str
    assistants: frozenset[str] | None
    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None = None
    output_expires_after_s: int | None = None


class OpenAIBatches:
    """The batches of one database; its tables must exist. Its methods are for threads."""

    def __init__(self, engine: Engine) -> None:
        """Use this engine."""
        self._engine = engine

    def create(self, new: NewBatch) -> OpenAIBatch:
        """Make a batch whose file is still to be looked at."""
        now = datetime.now(UTC)
        row = OpenAIBatch(
            id=f"batch_{uuid.uuid4().hex}",
            workspace=new.workspace,
            assistants=None if new.assistants is None else sorted(new.assistants),
            input_file_id=new.input_file_id,
            endpoint=new.endpoint,
            completion_window=new.completion_window,
            status=BatchStatus.VALIDATING.value,
            batch_metadata=new.metadata,
            output_expires_after_s=new.output_expires_after_s,
            created_at=now,
            expires_at=now + COMPLETION_WINDOW,
        )
        with Session(self._engine, expire_on_commit=False) as session:
            session.add(row)
            session.commit()
        return row

    def get(self, caller: Caller, batch_id: str) -> OpenAIBatch | None:
        """Return the batch, None if there is none of this id that the key sees."""
        if not batch_id.isprintable():  # PostgreSQL would refuse the question
            return None
        with Session(self._engine) as session:
            row = session.get(OpenAIBatch, batch_id)
        seen = row is not None and row.workspace == caller.workspace and within(row.assistants, caller.assistants)
        return row if seen else None

    def page(self, caller: Caller, *, limit: int, after: OpenAIBatch | None) -> tuple[list[OpenAIBatch], bool]:
        """Return up to `limit` batches, newest first, those that come after one; and whether there are more."""
        made_at, batch_id = col(OpenAIBatch.created_at), col(OpenAIBatch.id)
        of_workspace = col(OpenAIBatch.workspace) == caller.workspace
        query = select(OpenAIBatch).where(of_workspace)
        if after is not None:
            same_time = and_(made_at == after.created_at, batch_id < after.id)
            query = query.where(or_(made_at < after.created_at, same_time))
        with Session(self._engine) as session:
            query = query.where(made_within(session, col(OpenAIBatch.assistants), of_workspace, caller.assistants))
            rows = list(session.exec(query.order_by(made_at.desc(), batch_id.desc()).limit(limit + 1)))
        return rows[:limit], len(rows) > limit

    def call_off(self, batch_id: str) -> None:
        """Have the batch end as cancelled, if it is not past that; what is in the queue is the caller's to cancel."""
        statement = (
            update(OpenAIBatch)
            .where(col(OpenAIBatch.id) == batch_id, col(OpenAIBatch.status).in_(_CAN_BE_CANCELLED))
            .values(status=BatchStatus.CANCELLING.value, cancelling_at=datetime.now(UTC))
        )
        with self._engine.begin() as connection:
            connection.execute(statement)

    def due(self, now: datetime, *, limit: int) -> Sequence[str]:
        """Return batches that need work which nobody does: to be taken in, or ended and without their files."""
        query = (
            select(OpenAIBatch.id)
            .where(*_is_free(now), _needs_work())
            .order_by(col(OpenAIBatch.created_at))
            .limit(limit)
        )
        with Session(self._engine) as session:
            return session.exec(query).all()

    def next_due(self, now: datetime) -> datetime | None:
        """Return when the first lease ends of those under which somebody works, or waits to try again."""
        claimed = col(OpenAIBatch.claimed_until) > now
        query = select(func.min(OpenAIBatch.claimed_until)).where(_IS_OPEN, claimed, _needs_work())
        with Session(self._engine) as session:
            return session.exec(query).one()

    def claim(self, batch_id: str, *, now: datetime, lease: timedelta) -> OpenAIBatch | None:
        """Take the batch until the lease ends; None if another one has it."""
        statement = (
            update(OpenAIBatch)
            .where(col(OpenAIBatch.id) == batch_id, *_is_free(now))
            .values(claims=col(OpenAIBatch.claims) + 1, claimed_until=now + lease)
            .returning(OpenAIBatch)
        )
        with Session(self._engine, expire_on_commit=False) as session:
            row = session.execute(statement).scalar_one_or_none()
            session.commit()
        return row


# In words, for the index of those that have not ended (schemas/tables.py).
_IS_OPEN = col(OpenAIBatch.ended_at).is_(None)


def _is_free(now: datetime) -> tuple[Any, ...]:
    unclaimed = or_(col(OpenAIBatch.claimed_until).is_(None), col(OpenAIBatch.claimed_until) <= now)
    return _IS_OPEN, unclaimed


def _needs_work() -> Any:
    has_ended = exists().where(col(Batch.id) == col(OpenAIBatch.id))
    return or_(col(OpenAIBatch.enqueued_at).is_(None), has_ended)
