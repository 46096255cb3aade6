"""The threads of a workspace, as far as a key may see them (access.py)."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Engine
from sqlmodel import Session, col, select

from producer.gateway.access import Caller
from producer.gateway.dialects.own.pages import Place, after
from producer.gateway.sharing import thread_seen
from schemas.tables import Thread


class ThreadRecords:
    """Finds the threads of one database; what is in them, and their end, is of producer/gateway."""

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


def _seen_by(session: Session, caller: Caller) -> tuple[ColumnElement[bool], ...]:
    seen = thread_seen(session, caller.workspace, caller.assistants)
    return col(Thread.workspace) == caller.workspace, col(Thread.deleted_at).is_(None), seen
