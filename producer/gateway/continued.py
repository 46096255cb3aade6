"""Which threads a caller's jobs may go on with: those that its key sees (access.py), and new ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from redis import Redis
from sqlalchemy import not_
from sqlmodel import Session, and_, col, select

from producer.answers import answers
from producer.gateway.access import Caller
from producer.gateway.parts import Parts
from producer.gateway.sharing import thread_seen
from schemas import names
from schemas.job import JobRecord
from schemas.tables import Job, Thread

_AT_ONCE = 200


def thread_of_others(parts: Parts, caller: Caller, thread_ids: Iterable[str | None]) -> str | None:
    """Return a thread of these that the key must not go on with, None if there is none; blocks.

    A job in it would be told what was said to assistants that are not shared with the key.
    """
    if caller.assistants is None:
        return None
    left = iter(dict.fromkeys(each for each in thread_ids if each))
    while ids := list(islice(left, _AT_ONCE)):
        # The queue first: a job leaves it only after its end is in SQL.
        found = _queued_for_others(parts.producer.connection, caller, ids) or _kept_for_others(parts, caller, ids)
        if found is not None:
            return found
    return None


def _queued_for_others(connection: Redis, caller: Caller, ids: Sequence[str]) -> str | None:
    with answers():
        jobs_of = _each(connection, "lrange", [(names.thread(caller.workspace, each), 0, -1) for each in ids])
        waiting = [
            (thread_id, job_id.decode()) for thread_id, jobs in zip(ids, jobs_of, strict=True) for job_id in jobs
        ]
        records = _each(connection, "hget", [(names.job(job_id), "record") for _, job_id in waiting])
    for (thread_id, _), record in zip(waiting, records, strict=True):
        if record is not None and not caller.may_use(JobRecord.model_validate_json(record).job.address):
            return thread_id
    return None


def _kept_for_others(parts: Parts, caller: Caller, ids: Sequence[str]) -> str | None:
    of_others = and_(
        Job.workspace == caller.workspace,
        col(Job.thread_id).in_(ids),
        not_(col(Job.assistant).in_(sorted(caller.assistants or ()))),
    )
    with Session(parts.engine) as session:
        unseen = and_(
            Thread.workspace == caller.workspace,
            col(Thread.id).in_(ids),
            col(Thread.deleted_at).is_(None),
            not_(thread_seen(session, caller.workspace, caller.assistants)),
        )
        return (
            session.exec(select(Job.thread_id).where(of_others).limit(1)).first()
            or session.exec(select(Thread.id).where(unseen).limit(1)).first()
        )


def _each(connection: Redis, command: str, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
    with connection.pipeline(transaction=False) as pipe:
        for call in calls:
            getattr(pipe, command)(*call)
        return pipe.execute()
