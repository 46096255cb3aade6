"""The store on SQLite or PostgreSQL, through SQLModel."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from itertools import groupby
from typing import TypeVar

from sqlalchemy import Engine, tuple_
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlmodel import Session, col, select

from schemas.assistant import AssistantConfig
from schemas.batch import BatchStatus
from schemas.batch_events import batch_data, batch_event_id, batch_event_type
from schemas.chat import Message
from schemas.deliveries import new_delivery, with_free_ids
from schemas.job import InvokeJob, JobRecord
from schemas.result import JobResult
from schemas.tables import (
    AssistantEnvironment,
    AssistantVersion,
    Batch,
    Job,
    Thread,
    ThreadMessage,
    WebhookSubscription,
)
from schemas.webhook import Form
from worker.gather import Gathered
from worker.store.base import JobContext, RowHeld, Settlement, StoreAway, StoredAssistant
from worker.store.ended import ends_of
from worker.store.paired import paired
from worker.store.settling import settle_all

# InternalError is what a PostgreSQL says that only reads, as after a failover to a standby.
_AWAY = (OperationalError, InterfaceError, InternalError, PoolTimeoutError)
# SQLite has one writer at a time, and a server does more than one thing.
_SQLITE_GROUPS = 1
_SERVER_GROUPS = 3
_READS_TOGETHER = 128
_WRITES_TOGETHER = 128
# What PostgreSQL says when lock_timeout is over (settling.py).
_LOCK_NOT_AVAILABLE = "55P03"
# An owner may write into a thread again and again while we settle a turn of it.
_LOOKS = 5

T = TypeVar("T")
Item = TypeVar("Item")
Done = TypeVar("Done")
Work = Callable[[Session, Sequence[Item]], list[Done]]
# An assistant's address and the name of an environment.
_Pointer = tuple[str, str]


class SqlStore:
    """Reads, and writes, for the jobs of one moment in one short transaction, on a thread of its own pool.

    What gathers while one group is written is the next group, so that nothing waits for
    company. A row that the database refuses is its own job's alone.
    """

    def __init__(self, engine: Engine) -> None:
        """Use this engine; its tables must exist (schemas.database.ensure_tables)."""
        self._engine = engine
        groups = _SQLITE_GROUPS if engine.dialect.name == "sqlite" else _SERVER_GROUPS
        # One of each kind, and the ends of batches.
        self._threads = ThreadPoolExecutor(2 * groups + 1, thread_name_prefix="store")
        self._reads: Gathered[JobRecord, JobContext] = Gathered(
            lambda records: self._group(self._contexts, records), at_most=_READS_TOGETHER, at_once=groups
        )
        self._settlings: Gathered[Settlement, JobResult] = Gathered(
            lambda settlements: self._group(settle_all, settlements), at_most=_WRITES_TOGETHER, at_once=groups
        )
        # Versions are immutable, so what was read once stays true.
        self._versions: dict[tuple[str, int], StoredAssistant] = {}

    async def context(self, record: JobRecord) -> JobContext:
        """Read what the job needs."""
        return await self._reads.do(record)

    async def settle(self, settlement: Settlement) -> JobResult:
        """Write the end of a job once; return the result that stands."""
        return await self._settlings.do(settlement)

    async def end_batch(self, status: BatchStatus) -> None:
        """Write the end of a batch, and the delivery of its webhook, once."""
        # Where another worker ended it between our look and our insert, it was with the same counts, and the
        # second look sees it. What the database still refuses then is not ended, and must stay in aq:ending.
        ended = await self._in_thread(lambda: self._alone(_end_batches, status))
        if isinstance(ended, Exception):
            raise ended

    def close(self) -> None:
        """End the threads and connections."""
        self._threads.shutdown(wait=True)
        self._engine.dispose()

    async def _group(self, work: Work[Item, Done], items: Sequence[Item]) -> Sequence[Done | Exception]:
        return await self._in_thread(lambda: self._each_its_own(work, items))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _each_its_own(self, work: Work[Item, Done], items: Sequence[Item]) -> Sequence[Done | Exception]:
        """Do the work for all together, or, when that fails, for one after the other."""
        # Whose fault it was comes out below.
        with suppress(Exception):
            return self._together(work, items)
        answers: list[Done | Exception] = []
        for item in items:
            answer: Done | Exception = self._alone(work, item)
            answers.append(answer)
            # One that finds it away may be refused for what it brings; two do not. A held row is its own job's alone.
            away = [isinstance(answer, StoreAway) and not isinstance(answer, RowHeld) for answer in answers[-2:]]
            if away == [True, True]:
                return answers + answers[-1:] * (len(items) - len(answers))
        return answers

    def _alone(self, work: Work[Item, Done], item: Item) -> Done | Exception:
        try:
            for _ in range(_LOOKS - 1):
                # Another worker settled the job, ended the batch, or created the thread, or its owner wrote into
                # the thread, between our look and our insert. The next look sees it.
                with suppress(IntegrityError):
                    return self._together(work, [item])[0]
            return self._together(work, [item])[0]
        except Exception as exc:  # noqa: BLE001 - handed on to who asked
            return exc

    def _together(self, work: Work[Item, Done], items: Sequence[Item]) -> list[Done]:
        try:
            with Session(self._engine, expire_on_commit=False) as session:
                done = work(session, items)
                session.commit()
                return done
        except _AWAY as exc:
            cause = exc.orig if isinstance(exc, DBAPIError) else exc
            held = getattr(cause, "sqlstate", None) == _LOCK_NOT_AVAILABLE
            raise (RowHeld if held else StoreAway)(f"{type(exc).__name__}: {cause}") from exc

    def _contexts(self, session: Session, records: Sequence[JobRecord]) -> list[JobContext]:
        # A job's first run may have ended before too: its id may be older than what Redis remembers.
        settled = ends_of(session, (record.id for record in records))
        pointers = _pointers(session, [record.job for record in records if record.id not in settled])
        return [
            JobContext(settled=settled[record.id], assistant=None)
            if record.id in settled
            else self._context(session, record, pointers)
            for record in records
        ]

    def _context(self, session: Session, record: JobRecord, pointers: Mapping[_Pointer, int]) -> JobContext:
        thread_id = record.job.thread_id
        if _is_of_others(session, record):
            return JobContext(settled=None, assistant=None, is_of_others=True)
        thread = None if thread_id is None else session.get(Thread, (record.job.workspace, thread_id))
        thread = None if thread is None or thread.deleted_at is not None else thread
        return JobContext(
            settled=None,
            assistant=self._assistant(session, record.job, pointers),
            history=_history(session, thread) if thread else (),
            provider_refs=dict(thread.provider_refs) if thread else {},
        )

    def _assistant(self, session: Session, job: InvokeJob, pointers: Mapping[_Pointer, int]) -> StoredAssistant | None:
        if job.inline is not None:
            return StoredAssistant(config=job.inline.to_config(), version=None)
        version = pointers.get((job.address, job.environment)) if job.version is None else job.version
        if version is None:
            return None
        known = self._versions.get((job.address, version))
        if known is None:
            row = session.get(AssistantVersion, (job.address, version))
            if row is None:
                return None
            known = StoredAssistant(config=AssistantConfig.model_validate(row.config), version=version)
            self._versions[job.address, version] = known
        return known


def _pointers(session: Session, jobs: Iterable[InvokeJob]) -> dict[_Pointer, int]:
    wanted = {(job.address, job.environment) for job in jobs if job.inline is None and job.version is None}
    if not wanted:
        return {}
    columns = col(AssistantEnvironment.address), col(AssistantEnvironment.environment)
    query = select(*columns, col(AssistantEnvironment.version)).where(tuple_(*columns).in_(wanted))
    return {(address, environment): version for address, environment, version in session.exec(query)}


def _is_of_others(session: Session, record: JobRecord) -> bool:
    """Return whether jobs of assistants outside of JobRecord.within stand in the job's thread.

    The gateway has looked, but others may have come between its look and its enqueue. A thread's jobs run one after
    the other, each once the end of the one before is in SQL: here all are seen.
    """
    if record.within is None or record.job.thread_id is None:
        return False
    query = select(Job.id).where(Job.workspace == record.job.workspace, Job.thread_id == record.job.thread_id)
    return session.exec(query.where(col(Job.assistant).not_in(record.within)).limit(1)).first() is not None


def _history(session: Session, thread: Thread) -> tuple[tuple[Message, ...], ...]:
    query = (
        select(ThreadMessage)
        .where(ThreadMessage.workspace == thread.workspace, ThreadMessage.thread_id == thread.id)
        .where(col(ThreadMessage.deleted_at).is_(None))
        .order_by(col(ThreadMessage.position))
    )
    # What its owner wrote is of no job: each message for itself.
    turns = groupby(session.exec(query), key=lambda row: row.job_id or row.id)
    return paired(tuple(tuple(Message.model_validate(row.message) for row in rows) for _, rows in turns))


def _end_batches(session: Session, statuses: Sequence[BatchStatus]) -> list[None]:
    for status in statuses:
        _end_batch(session, status)
    return [None] * len(statuses)


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
            cost_nano=status.cost_nano,
            spend_cap_nano=status.spend_cap_nano,
            retry_of=status.retry_of,
            webhook=status.webhook,
            expires_at=None if status.expires_ms is None else datetime.fromtimestamp(status.expires_ms / 1000, UTC),
            created_at=created_at,
            finished_at=now,
        )
    )
    if status.webhook is not None:
        subscribed = session.get(WebhookSubscription, (status.workspace, status.webhook))
        form = Form.ASSISTQ if subscribed is None else Form(subscribed.form)
        delivery = new_delivery(
            id=batch_event_id(status),
            workspace=status.workspace,
            event_type=batch_event_type(status),
            url=status.webhook,
            data=batch_data(status, created_at=created_at, finished_at=now, form=form),
            now=now,
            form=form,
            batch_id=status.batch_id,
        )
        session.add_all(with_free_ids(session, [delivery]))
