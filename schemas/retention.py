"""Deletes from SQL what ended long ago, in short transactions: batches with jobs, jobs, threads, deliveries, files.

Both the command line and the workers prune; several may do so at once, and each may stop or die
after any step. What is not to be deleted:

- jobs of a batch that has not ended, or ended later than the limit: a batch goes as a whole, its row last;
- a batch of a family, which is a batch and all that ran its rows anew (`retry_of`), while one of them is younger
  or has not ended: their results are shown together, and a row's may be in any of them;
- a batch over OpenAI's API whose files are still to be written, or were later than the limit;
- a single job that the queue still holds: its row keeps the worker that claims it from running it again;
- a thread with a message that is younger, or with a job in the queue; messages that were deleted long ago go before
  the rest of their thread;
- deliveries that are still to be made, or were made since, and the job or the batch that one tells of: its id is free
  again once it is gone, and the next end of that id would find a delivery of its name. So deliveries go first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import zip_longest
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection, Engine, and_, delete, exists, func, literal, not_, or_, true, tuple_
from sqlmodel import col, select

from schemas.file_retention import FileRetention
from schemas.tables import Batch, Delivery, Job, OpenAIBatch, Thread, ThreadMessage
from schemas.webhook import DeliveryState

# A worker that slept for less finds the row of a job that another one has ended in its place.
MIN_AGE = timedelta(days=1)
# Rows of one transaction. Other writers of SQLite wait that long.
STEP_ROWS = 500
# Between two steps others get to write.
PAUSE_S = 0.05
_PAGE_BATCHES = 100
_DONE = (DeliveryState.DELIVERED.value, DeliveryState.FAILED.value)

# Workspace and id.
ThreadKey = tuple[str, str]
Item = TypeVar("Item")


class Kind(StrEnum):
    """What rows are of."""

    JOBS = "jobs"
    BATCHES = "batches"
    THREADS = "threads"
    MESSAGES = "messages"
    DELIVERIES = "deliveries"
    FILES = "files"


class InUse(Protocol):
    """What the queue still holds; see queue_in_use.py."""

    def jobs(self, job_ids: Sequence[str]) -> set[str]:
        """Return those of the jobs that have not ended for the queue."""

    def threads(self, threads: Sequence[ThreadKey]) -> set[ThreadKey]:
        """Return those of the threads that have jobs which have not ended."""

    def retried_batches(self) -> set[str]:
        """Return the batches whose rows an open batch runs anew."""


class Retention:
    """One round of pruning."""

    def __init__(self, engine: Engine, in_use: InUse, *, before: datetime, dry_run: bool = False) -> None:
        """Prune what ended before this time, which is at least MIN_AGE ago; with `dry_run` only count it."""
        self._engine = engine
        self._in_use = in_use
        self._before = before
        self._dry_run = dry_run

    def steps(self) -> Iterator[Counter[Kind]]:
        """Delete step by step; yield after each transaction how many rows of which kind it deleted.

        The caller pauses between steps, and may stop after any. Errors of the database and of the
        queue pass through.
        """
        # What they tell of stands as long as they do.
        yield from self._deliveries()
        yield from self._batches()
        yield from self._single_jobs()
        yield from self._deleted_messages()
        yield from self._threads()
        for count in FileRetention(self._engine, before=self._before, dry_run=self._dry_run).steps():
            yield Counter({Kind.FILES: count})

    def _batches(self) -> Iterator[Counter[Kind]]:
        old = select(Batch.finished_at, Batch.id, Batch.retry_of).where(col(Batch.finished_at) < self._before)
        seen: set[str] = set()
        for page in self._pages(old, (col(Batch.finished_at), col(Batch.id)), _PAGE_BATCHES):
            roots = {retry_of or batch_id for _, batch_id, retry_of in page} - seen
            seen |= roots
            runs = self._old_families(roots)
            goes = [batch_id for nth in runs for batch_id in nth]
            if not goes:
                continue
            # In the order of the runs: who looks meanwhile misses a row, or finds the end that stands.
            for nth in runs:
                for count in self._jobs_of(nth):
                    yield Counter({Kind.JOBS: count})
            left = exists().where(col(Job.batch_id) == col(Batch.id))
            count = self._delete(delete(Batch).where(col(Batch.id).in_(goes), ~left), len(goes))
            yield Counter({Kind.BATCHES: count})
        yield from self._openai_batches()

    def _openai_batches(self) -> Iterator[Counter[Kind]]:
        """Delete what OpenAI's API says of batches that are gone; of those that never ran a row there is no more."""
        ended_at, batch_id = col(OpenAIBatch.ended_at), col(OpenAIBatch.id)
        stands = or_(
            exists().where(col(Batch.id) == batch_id), exists().where(col(Delivery.batch_id) == batch_id, self._is_left)
        )
        gone = select(ended_at, batch_id).where(ended_at < self._before, ~stands)
        for page in self._pages(gone, (ended_at, batch_id), STEP_ROWS):
            ids = [each for _, each in page]
            self._delete(delete(OpenAIBatch).where(batch_id.in_(ids)), len(ids))
            # They are counted as the batches that they are, those that ran rows before.
            yield Counter()

    def _old_families(self, roots: set[str]) -> list[list[str]]:
        """Return the batches of those families of which nothing is younger or open: by their place in them."""
        # The queue first: a retry that ends in between is in SQL by then.
        stays = self._in_use.retried_batches()
        of_roots = or_(col(Batch.id).in_(roots), col(Batch.retry_of).in_(roots))
        with self._engine.connect() as connection:
            query = select(Batch.id, Batch.retry_of, Batch.finished_at).where(of_roots)
            members = connection.execute(query.order_by(col(Batch.finished_at))).all()
            # A batch's, and those of its jobs.
            of_members = col(Delivery.batch_id).in_([batch_id for batch_id, _, _ in members])
            told = set(
                connection.execute(select(Delivery.batch_id).where(of_members, self._is_left).distinct()).scalars()
            )
            younger = or_(col(OpenAIBatch.ended_at).is_(None), col(OpenAIBatch.ended_at) >= self._before)
            unwritten = select(OpenAIBatch.id).where(col(OpenAIBatch.id).in_([each.id for each in members]), younger)
            told |= set(connection.execute(unwritten).scalars())
        stays |= {retry_of or batch_id for batch_id, retry_of, _ in members if batch_id in told}
        stays |= {retry_of or batch_id for batch_id, retry_of, ended_at in members if ended_at >= self._before}
        families: dict[str, list[str]] = {}
        for batch_id, retry_of, _ in members:
            families.setdefault(retry_of or batch_id, []).append(batch_id)
        going = (family for root, family in families.items() if root not in stays)
        return [[batch_id for batch_id in nth if batch_id] for nth in zip_longest(*going)]

    def _jobs_of(self, batch_ids: Sequence[str]) -> Iterator[int]:
        of_them = col(Job.batch_id).in_(batch_ids)
        if self._dry_run:
            with self._engine.connect() as connection:
                rows: int = connection.execute(select(func.count()).select_from(Job).where(of_them)).scalar_one()
            yield rows
            return
        while ids := self._ids(select(Job.id).where(of_them).limit(STEP_ROWS)):
            yield self._delete(delete(Job).where(col(Job.id).in_(ids)), len(ids))

    def _single_jobs(self) -> Iterator[Counter[Kind]]:
        single = col(Job.batch_id).is_(None)
        is_old = and_(col(Job.finished_at) < self._before, single)
        old = select(Job.finished_at, Job.id).where(is_old)
        # At once, for no index finds a job's delivery; few are younger than their jobs. None comes later.
        of_old = select(Delivery.job_id).join(Job, col(Job.id) == col(Delivery.job_id)).where(is_old, self._is_left)
        told = set(self._ids(of_old))
        for page in self._pages(old, (col(Job.finished_at), col(Job.id)), STEP_ROWS):
            ids = [job_id for _, job_id in page]
            # Ended in SQL, but not yet in the queue: the worker was lost in between.
            goes = set(ids) - told - self._in_use.jobs(ids)
            if goes:
                yield Counter({Kind.JOBS: self._delete(delete(Job).where(col(Job.id).in_(goes)), len(goes))})

    def _threads(self) -> Iterator[Counter[Kind]]:
        of_thread = and_(
            col(ThreadMessage.workspace) == col(Thread.workspace), col(ThreadMessage.thread_id) == col(Thread.id)
        )
        deleted_at = col(ThreadMessage.deleted_at)
        is_left = or_(deleted_at.is_(None), deleted_at >= self._before)
        messages = select(func.count()).select_from(ThreadMessage).where(of_thread, is_left).scalar_subquery()
        old = select(Thread.workspace, Thread.id, messages).where(
            col(Thread.created_at) < self._before, self._is_silent()
        )
        for page in self._pages(old, (col(Thread.workspace), col(Thread.id)), STEP_ROWS):
            busy = self._in_use.threads([(workspace, thread_id) for workspace, thread_id, _ in page])
            sizes = [((ws, thread_id), count) for ws, thread_id, count in page if (ws, thread_id) not in busy]
            for step in _together(sizes, at_most=STEP_ROWS):
                threads = [key for key, _ in step]
                if self._dry_run:
                    yield Counter({Kind.THREADS: len(threads), Kind.MESSAGES: sum(count for _, count in step)})
                else:
                    yield self._delete_threads(threads)

    def _deleted_messages(self) -> Iterator[Counter[Kind]]:
        """Delete what its owner deleted of threads that go on."""
        is_old = col(ThreadMessage.deleted_at) < self._before
        # In these words the index knows it.
        is_deleted = col(ThreadMessage.deleted_at).is_not(None)
        old = select(ThreadMessage.deleted_at, ThreadMessage.id).where(is_deleted, is_old)
        for page in self._pages(old, (col(ThreadMessage.deleted_at), col(ThreadMessage.id)), STEP_ROWS):
            ids = [message_id for _, message_id in page]
            yield Counter(
                {Kind.MESSAGES: self._delete(delete(ThreadMessage).where(col(ThreadMessage.id).in_(ids)), len(ids))}
            )

    def _is_silent(self) -> Any:
        """Return the condition that a thread's last message is old, or that it has none."""
        last = (
            select(ThreadMessage.created_at)
            .where(ThreadMessage.workspace == Thread.workspace, ThreadMessage.thread_id == Thread.id)
            .order_by(col(ThreadMessage.position).desc())
            .limit(1)
            .scalar_subquery()
        )
        return or_(last.is_(None), last < self._before)

    def _delete_threads(self, threads: Sequence[ThreadKey]) -> Counter[Kind]:
        """Delete each thread whole, or none of them if one is used meanwhile: its turn comes in the next round.

        A job of the thread settles its turn, then leaves the queue. So one that is in no queue
        after the deletes has committed before, and its messages are seen by the look that follows.
        """
        keys = tuple_(col(Thread.workspace), col(Thread.id)).in_(threads)
        message_keys = tuple_(col(ThreadMessage.workspace), col(ThreadMessage.thread_id)).in_(threads)
        with self._writing() as connection:
            silent = connection.execute(select(func.count()).select_from(Thread).where(keys, self._is_silent()))
            if silent.scalar_one() == len(threads):
                messages = connection.execute(delete(ThreadMessage).where(message_keys)).rowcount
                connection.execute(delete(Thread).where(keys))
                busy = self._in_use.threads(threads)
                left = connection.execute(select(func.count()).select_from(ThreadMessage).where(message_keys))
                if not busy and left.scalar_one() == 0:
                    connection.commit()
                    return Counter({Kind.THREADS: len(threads), Kind.MESSAGES: messages})
            connection.rollback()
        return Counter()

    def _deliveries(self) -> Iterator[Counter[Kind]]:
        done = self._is_done
        old = select(Delivery.next_attempt_at, Delivery.id).where(done)
        for page in self._pages(old, (col(Delivery.next_attempt_at), col(Delivery.id)), STEP_ROWS):
            ids = [delivery_id for _, delivery_id in page]
            # Once more, whether it is done: it may be sent again meanwhile.
            yield Counter(
                {Kind.DELIVERIES: self._delete(delete(Delivery).where(col(Delivery.id).in_(ids), done), len(ids))}
            )

    @property
    def _is_done(self) -> Any:
        """Return the condition that a delivery was made, or given up, before the limit."""
        # Nothing moves the time of the next attempt after the last one.
        return and_(col(Delivery.state).in_(_DONE), col(Delivery.next_attempt_at) < self._before)

    @property
    def _is_left(self) -> Any:
        """Return the condition that a delivery is there once those that are done are deleted."""
        return not_(self._is_done) if self._dry_run else true()

    def _pages(self, query: Any, order: tuple[Any, Any], size: int) -> Iterator[Sequence[Any]]:
        """Give what the query finds in pages, in the order of its first two columns, each row once."""
        after: tuple[Any, Any] | None = None
        while True:
            page_query = query.order_by(*order).limit(size)
            if after is not None:
                place = tuple_(*order)
                values = tuple_(*(literal(value, each.type) for value, each in zip(after, order, strict=True)))
                page_query = page_query.where(place > values)
            # Read and done: a transaction that reads first and then writes, SQLite would refuse beside other writers.
            with self._engine.connect() as connection:
                page = connection.execute(page_query).all()
            if page:
                after = (page[-1][0], page[-1][1])
                yield page
            if len(page) < size:
                return

    def _ids(self, query: Any) -> list[str]:
        with self._engine.connect() as connection:
            return list(connection.execute(query).scalars())

    def _delete(self, statement: Any, rows: int) -> int:
        """Delete in a transaction of its own; return how many rows, or how many it would be."""
        if self._dry_run:
            return rows
        with self._engine.begin() as connection:
            return connection.execute(statement).rowcount

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        with self._engine.connect() as connection:
            if self._engine.dialect.name == "sqlite":
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield connection


def _together(sizes: Iterable[tuple[Item, int]], *, at_most: int) -> Iterator[list[tuple[Item, int]]]:
    """Give items some at once, as many as have `at_most` rows together; one that has more stands alone."""
    step: list[tuple[Item, int]] = []
    rows = 0
    for item, size in sizes:
        if step and rows + size > at_most:
            yield step
            step, rows = [], 0
        step.append((item, size))
        rows += size + 1
    if step:
        yield step
