"""The threads of a workspace and their messages, as far as a key may see them (access.py)."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ColumnElement, Engine, update
from sqlmodel import Session, col, select

from producer.gateway.access import Caller
from producer.gateway.dialects.own.pages import Place, after
from producer.gateway.sharing import thread_seen
from schemas.tables import Thread, ThreadMessage


class ThreadRecords:
    """Reads and deletes the threads of one database."""

    def __init__(self, engine: Engine) -> None:
        """Use this engine."""
        self._engine = engine

    def thread(self, thread_id: str, caller: Caller) -> Thread | None:
        """Return the thread, None if the caller knows none of this id."""
        with Session(self._engine) as session:
            query = select(Thread).where(Thread.id == thread_id, *_seen_by(session, caller))
            return session.exec(query).one_or_none()

    def latest(self, caller: Caller, *, place: Place | None, limit: int) -> list[Thread]:
        """Return threads after the place, the youngest first."""
        with Session(self._engine) as session:
            query = (
                select(Thread)
                .where(*_seen_by(session, caller), after(place, Thread.created_at, Thread.id))
                .order_by(col(Thread.created_at).desc(), col(Thread.id).desc())
                .limit(limit)
            )
            return list(session.exec(query))

    def messages(self, thread: Thread, *, after_position: int, limit: int) -> list[ThreadMessage]:
        """Return messages of the thread in their order, those behind the position."""
        query = (
            select(ThreadMessage)
            .where(
                ThreadMessage.workspace == thread.workspace,
                ThreadMessage.thread_id == thread.id,
                ThreadMessage.position > after_position,
                col(ThreadMessage.deleted_at).is_(None),
            )
            .order_by(col(ThreadMessage.position))
            .limit(limit)
        )
        with Session(self._engine) as session:
            return list(session.exec(query))

    def delete(self, thread: Thread, *, now: datetime) -> None:
        """Let the thread and its messages be gone for everybody; pruning takes the rows."""
        of_thread = col(ThreadMessage.workspace) == thread.workspace, col(ThreadMessage.thread_id) == thread.id
        is_thread = col(Thread.workspace) == thread.workspace, col(Thread.id) == thread.id
        with self._engine.begin() as connection:
            connection.execute(
                update(Thread).where(*is_thread, col(Thread.deleted_at).is_(None)).values(deleted_at=now)
            )
            left = update(ThreadMessage).where(*of_thread, col(ThreadMessage.deleted_at).is_(None))
            connection.execute(left.values(deleted_at=now))


def _seen_by(session: Session, caller: Caller) -> tuple[ColumnElement[bool], ...]:
    seen = thread_seen(session, caller.workspace, caller.assistants)
    return col(Thread.workspace) == caller.workspace, col(Thread.deleted_at).is_(None), seen
