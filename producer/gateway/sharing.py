"""What a key that only some assistants are shared with sees of the tables; access.py says the rule in words.

`assistants` are those that are shared with the key, None all of its workspace: that key sees all.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from sqlalchemy import ColumnElement, Text, and_, cast, exists, not_, or_, true
from sqlmodel import Session, col, select

from schemas.tables import Job, Thread

Shared = frozenset[str] | None


def within(made_with: Collection[str] | None, assistants: Shared) -> bool:
    """Return whether what a key with the assistants `made_with` made is seen by one with these."""
    return assistants is None or (made_with is not None and assistants.issuperset(made_with))


def made_within(session: Session, column: Any, of_workspace: ColumnElement[bool], assistants: Shared) -> Any:
    """Return the condition that a row is within these; its `column` has the assistants of the key that made it.

    No database's JSON can be compared with a set, but a workspace has few of them, and each is written in one way.
    """
    if assistants is None:
        return true()
    written = cast(column, Text)
    sets = session.exec(select(written).where(of_workspace, written.is_not(None)).distinct())
    return written.in_([each for each in sets if within(json.loads(each), assistants)])


def thread_seen(session: Session, workspace: str, assistants: Shared) -> Any:
    """Return the condition that a thread of the workspace is seen: by its jobs, and before the first by its maker."""
    if assistants is None:
        return true()
    shared = col(Job.assistant).in_(sorted(assistants))
    made = made_within(session, col(Thread.assistants), col(Thread.workspace) == workspace, assistants)
    return and_(or_(_has_job(shared), made), not_(_has_job(not_(shared))))


def _has_job(which: ColumnElement[bool]) -> Any:
    return exists().where(col(Job.workspace) == col(Thread.workspace), col(Job.thread_id) == col(Thread.id), which)
