"""The store on SQLite or PostgreSQL, through SQLModel."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import groupby
from typing import Any, TypeVar

from sqlalchemy import Engine, func
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlmodel import Session, col, select

from schemas.assistant import AssistantConfig
from schemas.batch import BatchStatus
from schemas.chat import Message
from schemas.job import JobRecord
from schemas.result import JobResult
from schemas.tables import AssistantEnvironment, AssistantVersion, Batch, Job, Thread, ThreadMessage
from worker.store.base import JobContext, Settlement, StoreAway, StoredAssistant
from worker.webhooks.deliveries import new_delivery

# InternalError is what a PostgreSQL says that only reads, as after a failover to a standby.
_AWAY = (OperationalError, InterfaceError, InternalError, PoolTimeoutError)
# SQLite has one writer at a time: more threads would only wait for its lock.
_SQLITE_THREADS = 2
_SERVER_THREADS = 8

T = TypeVar("T")


class SqlStore:
    """Runs each unit of work in one short transaction on a thread of its own pool."""

    def __init__(self, engine: Engine) -> None:
        """Use this engine; its tables must exist (schemas.database.ensure_tables)."""
        self._engine = engine
        threads = _SQLITE_THREADS if engine.dialect.name == "sqlite" else _SERVER_THREADS
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="store")
        # Versions are immutable, so what was read once stays true.
        self._versions: dict[tuple[str, int], StoredAssistant] = {}

    async def context(self, record: JobRecord) -> JobContext:
        """Read what the job needs."""
        return await self._in_thread(lambda session: self._context(session, record))

    async def settle(self, settlement: Settlement) -> JobResult:
        """Write the end of a job once; return the result that stands."""
        try:
            return await self._in_thread(lambda session: _settle(session, settlement))
        except IntegrityError:
            # Another worker settled the job, or created the thread, between our look and our
            # insert. The second look sees it.
            return await self._in_thread(lambda session: _settle(session, settlement))

    async def end_batch(self, status: BatchStatus) -> None:
        """Write the end of a batch, and the delivery of its webhook, once."""
        try:
            await self._in_thread(lambda session: _end_batch(session, status))
        except IntegrityError:
            # Another worker ended it between our look and our insert, with the same counts.
            return

    def close(self) -> None:
        """End the threads and connections."""
        self._threads.shutdown(wait=True)
        self._engine.dispose()

    async def _in_thread(self, work: Callable[[Session], T]) -> T:
        def unit() -> T:
            with Session(self._engine, expire_on_commit=False) as session:
                done = work(session)
                session.commit()
                return done

        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, unit)
        except _AWAY as exc:
            raise StoreAway(f"{type(exc).__name__}: {exc.orig if isinstance(exc, DBAPIError) else exc}") from exc

    def _context(self, session: Session, record: JobRecord) -> JobContext:
        row = session.get(Job, record.id)
        if row is not None:
            return JobContext(settled=row.result(), assistant=None)
        thread_id = record.job.thread_id
        thread = None if thread_id is None else session.get(Thread, (record.job.workspace, thread_id))
        return JobContext(
            settled=None,
            assistant=self._assistant(session, record),
            history=_history(session, thread) if thread else (),
            provider_refs=dict(thread.provider_refs) if thread else {},
        )

    def _assistant(self, session: Session, record: JobRecord) -> StoredAssistant | None:
        job = record.job
        if job.inline is not None:
            return StoredAssistant(config=job.inline.to_config(), version=None)
        version = job.version
        if version is None:
            pointer = session.get(AssistantEnvironment, (job.address, job.environment))
            if pointer is None:
                return None
            version = pointer.version
        known = self._versions.get((job.address, version))
        if known is None:
            row = session.get(AssistantVersion, (job.address, version))
            if row is None:
                return None
            known = StoredAssistant(config=AssistantConfig.model_validate(row.config), version=version)
            self._versions[job.address, version] = known
        return known


def _history(session: Session, thread: Thread) -> tuple[tuple[Message, ...], ...]:
    query = (
        select(ThreadMessage)
        .where(ThreadMessage.workspace == thread.workspace, ThreadMessage.thread_id == thread.id)
        .order_by(col(ThreadMessage.position))
    )
    turns = groupby(session.exec(query), key=lambda row: row.job_id)
    return tuple(tuple(Message.model_validate(row.message) for row in rows) for _, rows in turns)


def _settle(session: Session, settlement: Settlement) -> JobResult:
    record, result = settlement.record, settlement.result
    # The primary key makes an end happen once: a worker that was stopped for longer than its
    # lease finds the row of the one that took over, and the first commit stands.
    row = session.get(Job, record.id)
    if row is not None:
        return row.result()
    session.add(_job_row(settlement))
    if settlement.new_messages and result.thread_id is not None:
        _append_turn(session, settlement, result.thread_id)
    return result


def _append_turn(session: Session, settlement: Settlement, thread_id: str) -> None:
    workspace = settlement.record.job.workspace
    now = settlement.result.finished_at
    ref = dict([settlement.provider_ref]) if settlement.provider_ref else {}
    thread = session.get(Thread, (workspace, thread_id))
    if thread is None:
        session.add(Thread(workspace=workspace, id=thread_id, provider_refs=ref, created_at=now))
        last = -1
    else:
        thread.provider_refs = {**thread.provider_refs, **ref}
        last = session.exec(
            select(func.coalesce(func.max(ThreadMessage.position), -1)).where(
                ThreadMessage.workspace == workspace, ThreadMessage.thread_id == thread_id
            )
        ).one()
    for position, message in enumerate(settlement.new_messages, start=last + 1):
        session.add(
            ThreadMessage(
                workspace=workspace,
                thread_id=thread_id,
                position=position,
                job_id=settlement.record.id,
                role=message.role,
                content=message.text,
                message=message.model_dump(mode="json", exclude_defaults=True),
                created_at=now,
            )
        )


def _end_batch(session: Session, status: BatchStatus) -> None:
    if session.get(Batch, status.batch_id) is not None:
        return
    now = datetime.now(UTC)
    counts = {name.value: count for name, count in status.counts.items()}
    created_at = datetime.fromtimestamp(status.created_ms / 1000, UTC)
    session.add(
        Batch(
            id=status.batch_id,
            workspace=status.workspace,
            label=status.label,
            state=status.state.value,
            total=status.finished,
            counts=counts,
            requests=status.requests,
            prompt_tokens=status.prompt_tokens,
            completion_tokens=status.completion_tokens,
            webhook=status.webhook,
            created_at=created_at,
            finished_at=now,
        )
    )
    if status.webhook is not None:
        event_type = f"batch.{status.state.value}"
        session.add(
            new_delivery(
                id=f"msg_{status.batch_id}_{status.state.value}",
                workspace=status.workspace,
                event_type=event_type,
                url=status.webhook,
                data={
                    "batch_id": status.batch_id,
                    "state": status.state.value,
                    "total": status.finished,
                    "counts": counts,
                    "requests": status.requests,
                    "prompt_tokens": status.prompt_tokens,
                    "completion_tokens": status.completion_tokens,
                    "created_at": created_at.isoformat(),
                    "finished_at": now.isoformat(),
                },
                now=now,
                batch_id=status.batch_id,
            )
        )


def _job_row(settlement: Settlement) -> Job:
    record = settlement.record
    result = settlement.result.without_content() if record.job.do_not_record else settlement.result
    values: dict[str, Any] = result.model_dump(mode="python", exclude={"job_id", "status"})
    for name in ("tool_calls", "choices", "retrieved"):
        values[name] = list(values[name]) or None
    return Job(
        id=record.id,
        workspace=record.job.workspace,
        status=result.status.value,
        epoch=settlement.epoch,
        variables={} if record.job.do_not_record else record.job.variables,
        job_metadata={} if record.job.do_not_record else record.job.metadata,
        enqueued_at=datetime.fromtimestamp(settlement.enqueued_ms / 1000, UTC),
        **values,
    )
