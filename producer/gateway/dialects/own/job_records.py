"""Jobs that ended, in SQL, as far as a key of one workspace may see them."""

from __future__ import annotations

from sqlalchemy import Engine
from sqlmodel import Session, col, select

from producer.gateway.access import Caller
from producer.gateway.dialects.own.pages import Place, after
from schemas.outcome import Status
from schemas.tables import Job


class JobRecords:
    """Reads the jobs of one database; a key that only some assistants are shared with sees only their jobs."""

    def __init__(self, engine: Engine) -> None:
        """Use this engine."""
        self._engine = engine

    def job(self, job_id: str, *, caller: Caller) -> Job | None:
        """Return the job, None if the caller knows none of this id."""
        with Session(self._engine) as session:
            row = session.get(Job, job_id)
        seen = row is not None and row.workspace == caller.workspace and caller.may_use(row.assistant)
        return row if seen else None

    def jobs(
        self,
        *,
        caller: Caller,
        status: Status | None,
        assistant: str | None,
        batch_id: str | None,
        place: Place | None,
        limit: int,
    ) -> list[Job]:
        """Return jobs that ended, latest first, after the place; `status` and the like narrow them."""
        query = select(Job).where(Job.workspace == caller.workspace, after(place, Job.finished_at, Job.id))
        if caller.assistants is not None:
            query = query.where(col(Job.assistant).in_(sorted(caller.assistants)))
        if status is not None:
            query = query.where(Job.status == status.value)
        if assistant is not None:
            query = query.where(Job.assistant == assistant)
        if batch_id is not None:
            query = query.where(Job.batch_id == batch_id)
        query = query.order_by(col(Job.finished_at).desc(), col(Job.id).desc()).limit(limit)
        with Session(self._engine) as session:
            return list(session.exec(query))
