"""Reads what was done, from SQL: batches, results, threads, deliveries."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Engine, or_
from sqlmodel import Session, col, select

from schemas.batch import BatchState, BatchStatus
from schemas.errors import InputError
from schemas.outcome import Status
from schemas.result import JobResult
from schemas.signing_secrets import signing_secret
from schemas.tables import Batch, Delivery, Job, Thread, ThreadMessage

_FETCH_ROWS = 1000


class Records:
    """Reads one database; its tables must exist."""

    def __init__(self, engine: Engine) -> None:
        """Use this engine."""
        self._engine = engine

    def batch(self, batch_id: str) -> BatchStatus | None:
        """Return a batch that has ended, or None."""
        with Session(self._engine) as session:
            row = session.get(Batch, batch_id)
        return None if row is None else _status(row)

    def batches(self, limit: int) -> list[BatchStatus]:
        """Return the batches that ended last, latest first."""
        query = select(Batch).order_by(col(Batch.finished_at).desc()).limit(limit)
        with Session(self._engine) as session:
            return [_status(row) for row in session.exec(query)]

    def runs_of(self, batch_id: str) -> list[BatchStatus]:
        """Return the batch and those that ran its rows anew (`run --again`), as far as they ended, oldest first."""
        anew = col(Batch.id).startswith(f"{batch_id}_", autoescape=True)
        query = select(Batch).where(or_(col(Batch.id) == batch_id, anew)).order_by(col(Batch.finished_at))
        with Session(self._engine) as session:
            return [_status(row) for row in session.exec(query)]

    def results(self, batch_id: str) -> Iterator[JobResult]:
        """Yield the batch's jobs that have ended, in the order of their rows."""
        query = select(Job).where(Job.batch_id == batch_id).order_by(col(Job.row))
        with Session(self._engine) as session:
            for row in session.exec(query.execution_options(yield_per=_FETCH_ROWS)):
                yield row.result()

    def job(self, job_id: str) -> JobResult | None:
        """Return a job that has ended, or None."""
        with Session(self._engine) as session:
            row = session.get(Job, job_id)
        return None if row is None else row.result()

    def thread(self, thread_id: str, *, workspace: str | None) -> list[ThreadMessage]:
        """Return the thread's messages in order; InputError if there is none, or one in several workspaces."""
        query = select(Thread).where(Thread.id == thread_id)
        if workspace is not None:
            query = query.where(Thread.workspace == workspace)
        with Session(self._engine) as session:
            found = session.exec(query).all()
            if not found:
                raise InputError(
                    f"thread '{thread_id}' is not known", mend="a thread exists once a job in it has succeeded"
                )
            if len(found) > 1:
                owners = ", ".join(sorted(thread.workspace for thread in found))
                raise InputError(f"thread '{thread_id}' exists in workspaces {owners}", mend="say --workspace")
            messages = (
                select(ThreadMessage)
                .where(ThreadMessage.workspace == found[0].workspace, ThreadMessage.thread_id == thread_id)
                .order_by(col(ThreadMessage.position))
            )
            return list(session.exec(messages))

    def deliveries(self, *, batch_id: str | None = None, limit: int = 100) -> list[Delivery]:
        """Return the newest deliveries, of one batch if it is named."""
        query = select(Delivery).order_by(col(Delivery.created_at).desc()).limit(limit)
        if batch_id is not None:
            query = query.where(Delivery.batch_id == batch_id)
        with Session(self._engine) as session:
            return list(session.exec(query))

    def signing_secret(self, workspace: str) -> str:
        """Return the secret that the workspace's webhooks are signed with; it is made if there is none."""
        with Session(self._engine) as session:
            secret = signing_secret(session, workspace)
            session.commit()
            return secret


def _status(row: Batch) -> BatchStatus:
    return BatchStatus(
        batch_id=row.id,
        workspace=row.workspace,
        label=row.label,
        state=BatchState(row.state),
        total=row.total,
        enqueued=row.total,
        counts={Status(name): count for name, count in row.counts.items()},
        requests=row.requests,
        prompt_tokens=row.prompt_tokens,
        completion_tokens=row.completion_tokens,
        created_ms=int(row.created_at.timestamp() * 1000),
        webhook=row.webhook,
        expires_ms=None if row.expires_at is None else int(row.expires_at.timestamp() * 1000),
        spend_cap_nano=row.spend_cap_nano,
        cost_nano=row.cost_nano,
        retry_of=row.retry_of,
    )
