"""The threads of workspaces, as their owners read and write them over HTTP; their messages are in thread_messages.py.

Deleting is soft: what was deleted is gone for everybody, the workers too, and pruning (schemas/retention.py) takes the
rows away. Each method looks only at one workspace, and there at what a key sees (access.py); what it does not find
raises Problem 404.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from sqlalchemy import Engine, update
from sqlmodel import Session, and_, col, or_, select

from producer.gateway.problem import Kind, Problem
from producer.gateway.sharing import thread_seen
from producer.gateway.thread_calls import of_thread
from schemas.tables import Thread, ThreadMessage

# A worker calls a thread `thread_` and the job's id, so it may be longer than an id that a caller chooses.
_THREAD_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,255}")

Row = TypeVar("Row", Thread, ThreadMessage)


@dataclass(frozen=True, slots=True)
class Page(Generic[Row]):
    """Some rows of a list, and whether there are more behind them."""

    rows: list[Row]
    has_more: bool


class Threads:
    """The threads of one database; its tables must exist. Its methods are for threads of the process, not the loop."""

    def __init__(self, engine: Engine, assistants: frozenset[str] | None = None) -> None:
        """Use this engine, for a key that these assistants are shared with, None for one of all its workspace."""
        self._engine = engine
        self._assistants = assistants

    def page(self, workspace: str, *, limit: int, after: str | None) -> Page[Thread]:
        """Return threads of the workspace, youngest first, those behind the thread `after` if it is named."""
        with self.session() as session:
            seen = select(Thread).where(
                Thread.workspace == workspace, thread_seen(session, workspace, self._assistants)
            )
            query = seen.where(col(Thread.deleted_at).is_(None))
            if after is not None:
                # One that was deleted since its page was read is a place all the same.
                known = _THREAD_ID.fullmatch(after) is not None
                cursor = session.exec(seen.where(Thread.id == after)).one_or_none() if known else None
                if cursor is None:
                    raise no_cursor(after)
                older = col(Thread.created_at) < cursor.created_at
                beside = and_(col(Thread.created_at) == cursor.created_at, col(Thread.id) < cursor.id)
                query = query.where(or_(older, beside))
            order = (col(Thread.created_at).desc(), col(Thread.id).desc())
            rows = list(session.exec(query.order_by(*order).limit(limit + 1)))
        return Page(rows[:limit], has_more=len(rows) > limit)

    def create(self, workspace: str, *, metadata: Any, create_log: Any) -> Thread:
        """Begin a thread without messages."""
        thread = Thread(
            workspace=workspace,
            id=f"thread_{uuid.uuid4().hex}",
            provider_refs={},
            thread_metadata=metadata,
            create_log=create_log,
            assistants=None if self._assistants is None else sorted(self._assistants),
            created_at=datetime.now(UTC),
        )
        with self.session() as session:
            session.add(thread)
            session.commit()
        return thread

    def thread(self, workspace: str, thread_id: str) -> Thread:
        """Return the thread."""
        with self.session() as session:
            return self.found(session, workspace, thread_id)

    def has(self, workspace: str, thread_id: str) -> bool:
        """Return whether there is such a thread."""
        with self.session() as session:
            thread = session.get(Thread, (workspace, thread_id))
        return thread is not None and thread.deleted_at is None

    def is_deleted(self, workspace: str, thread_id: str) -> bool:
        """Return whether the thread was deleted."""
        with self.session() as session:
            thread = session.get(Thread, (workspace, thread_id))
        return thread is not None and thread.deleted_at is not None

    def set_metadata(self, workspace: str, thread_id: str, metadata: Any) -> Thread:
        """Replace the metadata of the thread."""
        with self.session() as session:
            thread = self.found(session, workspace, thread_id)
            thread.thread_metadata = metadata
            session.commit()
        return thread

    def delete(self, workspace: str, thread_id: str) -> None:
        """Delete the thread with its messages; what a job that runs meanwhile would add is not kept."""
        with self.writing() as session:
            thread = self.found(session, workspace, thread_id, lock=True)
            thread.deleted_at = datetime.now(UTC)
            # A job that is enqueued from now on begins it anew, and this conversation is not its own.
            thread.provider_refs = {}
            session.flush()
            left = update(ThreadMessage).where(
                *of_thread(workspace, thread_id), col(ThreadMessage.deleted_at).is_(None)
            )
            session.connection().execute(left.values(deleted_at=thread.deleted_at))
            session.commit()

    def found(self, session: Session, workspace: str, thread_id: str, *, lock: bool = False) -> Thread:
        """Return the thread's row, with `lock` under one that workers wait for (settling.py) where rows have any."""
        known = _THREAD_ID.fullmatch(thread_id) is not None
        thread = session.get(Thread, (workspace, thread_id), with_for_update=lock or None) if known else None
        if thread is None or thread.deleted_at is not None or not self._sees(session, thread):
            raise no_thread(thread_id)
        return thread

    def _sees(self, session: Session, thread: Thread) -> bool:
        if self._assistants is None:
            return True
        seen = thread_seen(session, thread.workspace, self._assistants)
        query = select(Thread.id).where(Thread.workspace == thread.workspace, Thread.id == thread.id, seen)
        return session.exec(query).first() is not None

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """Yield a session in which nobody else writes what was looked at, once `found` has locked it."""
        with self.session() as session:
            if self._engine.dialect.name == "sqlite":
                # Its write lock before our look: it has none of rows.
                session.connection().exec_driver_sql("BEGIN IMMEDIATE")
            yield session

    def session(self) -> Session:
        """Return a session whose rows can be read after it."""
        return Session(self._engine, expire_on_commit=False)


def no_thread(thread_id: str) -> Problem:
    """Return the problem of a thread that there is not, or not for this key."""
    return Problem(Kind.NOT_FOUND, f"there is no thread '{thread_id}'", code="thread_not_found")


def no_cursor(after: str) -> Problem:
    """Return the problem of a page that is to begin behind what there is not."""
    message = f"after: the list has no '{after}'; send the last_id of a page"
    return Problem(Kind.BAD_REQUEST, message, code="bad_cursor", param="after")
