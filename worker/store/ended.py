"""Ends that stand in SQL already: looked for before each job and each settling, and hardly ever found."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import bindparam
from sqlalchemy import select as select_columns
from sqlmodel import Session, col, select

from schemas.result import JobResult
from schemas.tables import Job

# Built once, and without the ORM: to do both for each look is most of what it costs.
_KNOWN = select_columns(Job.__table__.c.id).where(  # type: ignore[attr-defined]
    Job.__table__.c.id.in_(bindparam("ids", expanding=True))  # type: ignore[attr-defined]
)


def ends_of(session: Session, ids: Iterable[str]) -> dict[str, JobResult]:
    """Return how those of these jobs ended that did, by id."""
    known = session.connection().execute(_KNOWN, {"ids": list(ids)}).scalars().all()
    if not known:
        return {}
    return {row.id: row.result() for row in session.exec(select(Job).where(col(Job.id).in_(known)))}
