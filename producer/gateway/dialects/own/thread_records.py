"""The threads of a workspace, as far as a key may see them.

A key that only some assistants are shared with sees the threads in which jobs of these ended and of no other.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, Engine, exists, not_, true
from sqlmodel import Session, col, select

from producer.gateway.access import Caller
from producer.gateway.dialects.own.pages import Place, after
from schemas.tables import Job, Thread


class ThreadRecords:
    """Finds the threads of one database; what is in them, and their end, is in producer/gateway/threads.py."""

    def __init__(self, engine: Engine) -> None:
        """Use this engine."""
        self._engine = engine

    def thread(self, thread_id: str, caller: Caller) -> Thread | None:
        """Return the thread, None if the caller knows none of this id."""
        query = select(Thread).where(Thread.id == thread_id, *_seen_by(caller))
        with Session(self._engine) as session:
            return session.exec(query).one_or_none()

    def latest(self, caller: Caller, *, place: Place | None, limit: int) -> list[Thread]:
        """Return threads after the place, the youngest first."""
        query = (
            select(Thread)
            .where(*_seen_by(caller), after(place, Thread.created_at, Thread.id))
            .order_by(col(Thread.created_at).desc(), col(Thread.id).desc())
            .limit(limit)
        )
        with Session(self._engine) as session:
            return list(session.exec(query))


def _seen_by(caller: Caller) -> tuple[ColumnElement[bool], ...]:
    return col(Thread.workspace) == caller.workspace, col(Thread.deleted_at).is_(None), _shared(caller)


def _shared(caller: Caller) -> ColumnElement[bool]:
    if caller.assistants is None:
        return true()
    of_thread = col(Job.workspace) == col(Thread.workspace), col(Job.thread_id) == col(Thread.id)
    shared = col(Job.assistant).in_(sorted(caller.assistants))
    return exists().where(*of_thread, shared) & not_(exists().where(*of_thread, not_(shared)))
