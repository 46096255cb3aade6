"""Sessions of the agent dialect: threads whose ids are UUIDs (CONTRACT.md rows 45-48)."""

from __future__ import annotations

import uuid

from sqlmodel import Session

from producer.gateway.access import Caller
from producer.gateway.continued import thread_of_others
from producer.gateway.parts import Parts
from schemas import names
from schemas.tables import Thread

_NAMESPACE = uuid.UUID("5d1f6d0e-6d4b-4f0e-9c55-7a5a3a1c4a0b")


def new_session_id(job_id: str) -> str:
    """Return the id of the session that this job begins; a request that is sent again begins the same."""
    return str(uuid.uuid5(_NAMESPACE, job_id))


async def has_session(parts: Parts, caller: Caller, session_id: str) -> bool:
    """Return whether the workspace has the session, or a job that is beginning it now, and the key sees it.

    The queue first: a job leaves it only after its thread is in SQL.
    """
    begins = await parts.redis.exists(names.thread(caller.workspace, session_id))
    if not begins and not await parts.in_thread(_is_stored, parts, caller.workspace, session_id):
        return False
    return await parts.in_thread(thread_of_others, parts, caller, [session_id]) is None


def _is_stored(parts: Parts, workspace: str, session_id: str) -> bool:
    with Session(parts.engine) as session:
        thread = session.get(Thread, (workspace, session_id))
    return thread is not None and thread.deleted_at is None
