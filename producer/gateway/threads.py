"""The threads of workspaces, as their owners read and write them over HTTP.

Deleting is soft: what was deleted is gone for everybody, the workers too, and pruning (schemas/retention.py) takes the
rows away. Each method looks only at one workspace, and there at what a key sees (access.py); what it does not find
raises Problem 404.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from sqlalchemy import Engine, func, update
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, and_, col, or_, select

from producer.gateway.problem import Kind, Problem
from producer.gateway.sharing import thread_seen
from producer.gateway.thread_calls import (
    answers_behind,
    live,
    of_thread,
    refuse_to_delete_answer,
    refuse_what_parts_calls,
)
from schemas.chat import Message
from schemas.tables import Thread, ThreadMessage

# The locks leave nothing to try again, unless a process of an older release writes without them.
_LOOKS = 3
_MESSAGE_ID_MAX = 2**31 - 1
# A worker calls a thread `thread_` and the job's id, so it may be longer than an id that a caller chooses.
_THREAD_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,255}")
_MESSAGE_ID = re.compile(r"msg_([1-9][0-9]{0,9})")

Row = TypeVar("Row", Thread, ThreadMessage)


@dataclass(frozen=True, slots=True)
class Page(Generic[Row]):
    """Some rows of a list, and whether there are more behind them."""

    rows: list[Row]
    has_more: bool


def message_id(row: ThreadMessage) -> str:
    """Return what a caller knows the message by."""
    return f"msg_{row.id}"


class Threads:
    """The threads of one database; its tables must exist. Its methods are for threads of the process, not the loop."""

    def __init__(
        self,
        engine: Engine,
        assistants: frozenset[str] | None = None,
        *,
        has_jobs: Callable[[str, str], bool] = lambda *_: False,
    ) -> None:
        """Use this engine, for a key that these assistants are shared with, None for one of all its workspace.

        `has_jobs` says of a workspace and a thread whether jobs are enqueued or run there.
        """
        self._engine = engine
        self._assistants = assistants
        self._has_jobs = has_jobs

    def page(self, workspace: str, *, limit: int, after: str | None) -> Page[Thread]:
        """Return threads of the workspace, youngest first, those behind the thread `after` if it is named."""
        with self._session() as session:
            seen = select(Thread).where(
                Thread.workspace == workspace, thread_seen(session, workspace, self._assistants)
            )
            query = seen.where(col(Thread.deleted_at).is_(None))
            if after is not None:
                # One that was deleted since its page was read is a place all the same.
                known = _THREAD_ID.fullmatch(after) is not None
                cursor = session.exec(seen.where(Thread.id == after)).one_or_none() if known else None
                if cursor is None:
                    raise _no_cursor(after)
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
        with self._session() as session:
            session.add(thread)
            session.commit()
        return thread

    def thread(self, workspace: str, thread_id: str) -> Thread:
        """Return the thread."""
        with self._session() as session:
            return self._found(session, workspace, thread_id)

    def has(self, workspace: str, thread_id: str) -> bool:
        """Return whether there is such a thread."""
        with self._session() as session:
            thread = session.get(Thread, (workspace, thread_id))
        return thread is not None and thread.deleted_at is None

    def is_deleted(self, workspace: str, thread_id: str) -> bool:
        """Return whether the thread was deleted."""
        with self._session() as session:
            thread = session.get(Thread, (workspace, thread_id))
        return thread is not None and thread.deleted_at is not None

    def set_metadata(self, workspace: str, thread_id: str, metadata: Any) -> Thread:
        """Replace the metadata of the thread."""
        with self._session() as session:
            thread = self._found(session, workspace, thread_id)
            thread.thread_metadata = metadata
            session.commit()
        return thread

    def delete(self, workspace: str, thread_id: str) -> None:
        """Delete the thread with its messages; what a job that runs meanwhile would add is not kept."""
        with self._writing() as session:
            thread = self._found(session, workspace, thread_id, lock=True)
            thread.deleted_at = datetime.now(UTC)
            # A job that is enqueued from now on begins it anew, and this conversation is not its own.
            thread.provider_refs = {}
            session.flush()
            left = update(ThreadMessage).where(
                *of_thread(workspace, thread_id), col(ThreadMessage.deleted_at).is_(None)
            )
            session.connection().execute(left.values(deleted_at=thread.deleted_at))
            session.commit()

    def messages(
        self, workspace: str, thread_id: str, *, limit: int, after: str | None, newest_first: bool
    ) -> Page[ThreadMessage]:
        """Return messages of the thread in order, or in the opposite one, those behind the message `after`."""
        position = col(ThreadMessage.position)
        with self._session() as session:
            self._found(session, workspace, thread_id)
            query = live(workspace, thread_id)
            if after is not None:
                cursor = _row(session, workspace, thread_id, after)
                if cursor is None:
                    raise _no_cursor(after)
                query = query.where(position < cursor.position if newest_first else position > cursor.position)
            order = position.desc() if newest_first else position
            rows = list(session.exec(query.order_by(order).limit(limit + 1)))
        return Page(rows[:limit], has_more=len(rows) > limit)

    def messages_behind(self, workspace: str, thread_id: str, *, position: int, limit: int) -> list[ThreadMessage]:
        """Return messages of the thread in order, those behind the position; none if there is no thread."""
        column = col(ThreadMessage.position)
        with self._session() as session:
            query = live(workspace, thread_id).where(column > position)
            return list(session.exec(query.order_by(column).limit(limit)))

    def message(self, workspace: str, thread_id: str, message_id: str) -> ThreadMessage:
        """Return the message."""
        with self._session() as session:
            return self._found_message(session, workspace, thread_id, message_id)

    def append(self, workspace: str, thread_id: str, message: Message, *, metadata: Any) -> ThreadMessage:
        """Add the message behind all others; a turn that a job settles at the same time stands before or behind it.

        Raises Problem 409 for a message that would part a tool call from its answers.
        """
        if message.tool_calls:
            self._refuse_beside_jobs(workspace, thread_id)
        for _ in range(_LOOKS):
            try:
                return self._append(workspace, thread_id, message, metadata)
            except IntegrityError:
                # Somebody who holds no lock took the position between our look and our insert; the next look sees it.
                continue
        raise Problem(Kind.CONFLICT, f"thread '{thread_id}' is being written to all the time; try again", code="busy")

    def set_message_metadata(self, workspace: str, thread_id: str, message_id: str, metadata: Any) -> ThreadMessage:
        """Replace the metadata of the message; what it says stays."""
        with self._session() as session:
            row = self._found_message(session, workspace, thread_id, message_id)
            row.message_metadata = metadata
            session.commit()
        return row

    def delete_message(self, workspace: str, thread_id: str, message_id: str) -> None:
        """Delete the message; one that calls tools takes their answers along.

        Raises Problem 409 for such an answer itself while its call is there, and for calls while jobs run.
        """
        if Message.model_validate(self.message(workspace, thread_id, message_id).message).tool_calls:
            self._refuse_beside_jobs(workspace, thread_id)
        with self._writing() as session:
            self._found(session, workspace, thread_id, lock=True)
            row = self._found_message(session, workspace, thread_id, message_id)
            if row.role == "tool":
                refuse_to_delete_answer(session, row, message_id)
            now = datetime.now(UTC)
            row.deleted_at = now
            for answer in answers_behind(session, row) if Message.model_validate(row.message).tool_calls else ():
                answer.deleted_at = now
            session.commit()

    def _refuse_beside_jobs(self, workspace: str, thread_id: str) -> None:
        """Raise Problem 409 while jobs of the thread have not ended: they may answer its calls, or stand behind.

        Not in the transaction, which must not wait for Redis. A job that is enqueued between the two can still
        part them: workers leave out what has no other half (worker/store/paired.py).
        """
        if self._has_jobs(workspace, thread_id):
            raise Problem(
                Kind.CONFLICT,
                f"thread '{thread_id}' has a job that has not ended; messages that call tools are written and deleted "
                "when none runs: try again then",
                code="thread_is_at_work",
            )

    def _append(self, workspace: str, thread_id: str, message: Message, metadata: Any) -> ThreadMessage:
        with self._writing() as session:
            self._found(session, workspace, thread_id, lock=True)
            refuse_what_parts_calls(session, workspace, thread_id, message)
            last = func.coalesce(func.max(ThreadMessage.position), -1)
            position = 1 + session.exec(select(last).where(*of_thread(workspace, thread_id))).one()
            row = ThreadMessage(
                workspace=workspace,
                thread_id=thread_id,
                position=position,
                job_id="",
                role=message.role,
                content=message.text,
                message=message.model_dump(mode="json", exclude_defaults=True),
                message_metadata=metadata,
                created_at=datetime.now(UTC),
            )
            session.add(row)
            session.commit()
        return row

    def _found(self, session: Session, workspace: str, thread_id: str, *, lock: bool = False) -> Thread:
        """Return the thread's row, where there are locks of rows with one that workers wait for (settling.py)."""
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

    def _found_message(self, session: Session, workspace: str, thread_id: str, message_id: str) -> ThreadMessage:
        self._found(session, workspace, thread_id)
        row = _row(session, workspace, thread_id, message_id)
        if row is None or row.deleted_at is not None:
            raise Problem(
                Kind.NOT_FOUND, f"thread '{thread_id}' has no message '{message_id}'", code="message_not_found"
            )
        return row

    @contextmanager
    def _writing(self) -> Iterator[Session]:
        with self._session() as session:
            if self._engine.dialect.name == "sqlite":
                # Its write lock before our look: it has none of rows.
                session.connection().exec_driver_sql("BEGIN IMMEDIATE")
            yield session

    def _session(self) -> Session:
        return Session(self._engine, expire_on_commit=False)


def _row(session: Session, workspace: str, thread_id: str, message_id: str) -> ThreadMessage | None:
    """Return the message's row, also of one that was deleted."""
    match = _MESSAGE_ID.fullmatch(message_id)
    number = int(match[1]) if match else 0
    if not 0 < number <= _MESSAGE_ID_MAX:
        return None
    row = session.get(ThreadMessage, number)
    return row if row is not None and (row.workspace, row.thread_id) == (workspace, thread_id) else None


def no_thread(thread_id: str) -> Problem:
    """Return the problem of a thread that there is not, or not for this key."""
    return Problem(Kind.NOT_FOUND, f"there is no thread '{thread_id}'", code="thread_not_found")


def _no_cursor(after: str) -> Problem:
    message = f"after: the list has no '{after}'; send the last_id of a page"
    return Problem(Kind.BAD_REQUEST, message, code="bad_cursor", param="after")
