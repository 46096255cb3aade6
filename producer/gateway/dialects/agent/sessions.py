"""Sessions of the agent dialect: threads whose ids are UUIDs (CONTRACT.md rows 45-48)."""

from __future__ import annotations

import uuid

from producer.gateway.access import Caller
from producer.gateway.continued import thread_of_others
from producer.gateway.parts import Parts
from producer.gateway.threads import Threads
from schemas import names

_NAMESPACE = uuid.UUID("5d1f6d0e-6d4b-4f0e-9c55-7a5a3a1c4a0b")


def new_session_id(job_id: str) -> str:
    """Return the id of the session that this job begins; a request that is sent again begins the same."""
    return str(uuid.uuid5(_NAMESPACE, job_id))


async def has_session(parts: Parts, caller: Caller, session_id: str) -> bool:
    """Return whether the workspace has the session, or a job that is beginning it now, and the key sees it.

    The queue first: a job leaves it only after its thread is in SQL.
    """
    begins = await parts.redis.exists(names.thread(caller.workspace, session_id))
    if not begins and not await parts.in_thread(Threads(parts.engine).has, caller.workspace, session_id):
        return False
    return await parts.in_thread(thread_of_others, parts, caller, [session_id]) is None
