"""Sessions of the agent dialect: threads whose ids are UUIDs (CONTRACT.md rows 45-48)."""

from __future__ import annotations

import uuid

from producer.gateway.parts import Parts
from producer.gateway.threads import Threads
from schemas import names

_NAMESPACE = uuid.UUID("5d1f6d0e-6d4b-4f0e-9c55-7a5a3a1c4a0b")


def new_session_id(job_id: str) -> str:
    """Return the id of the session that this job begins; a request that is sent again begins the same."""
    return str(uuid.uuid5(_NAMESPACE, job_id))


async def has_session(parts: Parts, workspace: str, session_id: str) -> bool:
    """Return whether the workspace has the session, or a job that is beginning it now.

    The queue first: a job leaves it only after its thread is in SQL.
    """
    if await parts.redis.exists(names.thread(workspace, session_id)):
        return True
    return await parts.in_thread(Threads(parts.engine).has, workspace, session_id)
