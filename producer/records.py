"""Reads what was done, from SQL: batches, results, threads, deliveries."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from heapq import merge
from itertools import groupby
from typing import Any

from sqlalchemy import Engine, or_
from sqlalchemy.orm import defer
from sqlmodel import Session, col, select

from schemas.batch import BatchState, BatchStatus, next_retry_id
from schemas.errors import InputError
from schemas.outcome import Status
from schemas.result import JobResult
from schemas.signing_secrets import signing_secret
from schemas.tables import Batch, Delivery, Job, Thread, ThreadMessage

# Of rows whose answers may have a megabyte each.
_FETCH_ROWS = 100
# The attribute, which its class declares by its value's type.
_REQUEST: Any = Job.request
# Stands behind all rows.
_NO_ROW = sys.maxsize


class Records:
    """Reads one database; its tables must exist."""

    def __init__(self, engine: Engine) -> None:
        """Use this engine."""
        self._engine = engine

    def batch(self, batch_id: str) -> BatchStatus | None:
        """Return a batch that has ended, or None."""
        with Session(self._engine) as session:
            row = session.get(Batch, batch_id)
        return None if row is None else status_of(row)

    def batches(self, limit: int) -> list[BatchStatus]:
        """Return the batches that ended last, latest first."""
        query = select(Batch).order_by(col(Batch.finished_at).desc()).limit(limit)
        with Session(self._engine) as session:
            return [status_of(row) for row in session.exec(query)]

    def runs_of(self, batch_id: str) -> list[BatchStatus]:
        """Return the batch and those that ran its rows anew (`run --again`), as far as they ended, oldest first."""
        anew = col(Batch.id).startswith(f"{batch_id}_", autoescape=True)
        query = (
            select(Batch)
            .where(or_(col(Batch.id) == batch_id, anew), col(Batch.retry_of).is_(None))
            .order_by(col(Batch.finished_at))
        )
        with Session(self._engine) as session:
            return [status_of(row) for row in session.exec(query)]

    def retries_of(self, batch_id: str) -> list[BatchStatus]:
        """Return the batches that ran rows of the batch anew (`retry`), as far as they ended, oldest first."""
        with Session(self._engine) as session:
            found = [status_of(row) for row in session.exec(select(Batch).where(Batch.retry_of == batch_id))]
        # Their ids end in a number, and are alike before it.
        return sorted(found, key=lambda status: (len(status.batch_id), status.batch_id))

    def results(self, batch_id: str) -> Iterator[JobResult]:
        """Yield the results of the batch in the order of its rows, each row's from the last retry that ran it."""
        ended = [status.batch_id for status in self.retries_of(batch_id)]
        # One more may be running.
        for run in self.latest_runs([batch_id, *ended, next_retry_id(batch_id, ended)]):
            yield run.result()

    def latest_runs(self, batch_ids: Sequence[str], *, with_requests: bool = False) -> Iterator[Job]:
        """Yield one ended job for each row that these batches ran, in the order of rows.

        It is the one that succeeded, else that of the last of the batches that has one. Its `request` is there
        only `with_requests`, for it may be large.
        """
        runs = merge(*(self._jobs_of(batch_id, with_requests) for batch_id in batch_ids), key=_row_of)
        for row, same_row in groupby(runs, key=_row_of):
            if row == _NO_ROW:
                yield from same_row
                continue
            yield _decisive(same_row)

    def _jobs_of(self, batch_id: str, with_requests: bool) -> Iterator[Job]:
        """Yield the batch's ended jobs by row, those without one last.

        A page at a time: a reader that takes its time keeps no transaction open and no connection.
        """
        of_batch = select(Job).where(Job.batch_id == batch_id)
        if not with_requests:
            of_batch = of_batch.options(defer(_REQUEST))
        page: Sequence[Job] = ()
        last = -1
        while True:
            with Session(self._engine) as session:
                after = of_batch.where(col(Job.row) > last).order_by(col(Job.row)).limit(_FETCH_ROWS)
                page = session.exec(after).all()
            yield from page
            if len(page) < _FETCH_ROWS:
                break
            last = _row_of(page[-1])
        with Session(self._engine) as session:
            # Jobs whose record could not be read: few, if any.
            page = session.exec(of_batch.where(col(Job.row).is_(None)).order_by(col(Job.id))).all()
        yield from page

    def job(self, job_id: str) -> JobResult | None:
        """Return a job that has ended, or None."""
        with Session(self._engine) as session:
            row = session.get(Job, job_id)
        return None if row is None else row.result()

    def thread(self, thread_id: str, *, workspace: str | None) -> list[ThreadMessage]:
        """Return the thread's messages in order; InputError if there is none, or one in several workspaces."""
        query = select(Thread).where(Thread.id == thread_id, col(Thread.deleted_at).is_(None))
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
                .where(col(ThreadMessage.deleted_at).is_(None))
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


def _decisive(runs: Iterator[Job]) -> Job:
    """Return the run that succeeded, else the last one."""
    last = next(runs)
    while last.status != Status.SUCCEEDED and (later := next(runs, None)) is not None:
        last = later
    return last


def _row_of(job: Job) -> int:
    return _NO_ROW if job.row is None else job.row


def status_of(row: Batch) -> BatchStatus:
    """Return a batch that ended, out of its row."""
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
