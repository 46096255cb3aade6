"""Batches, running and ended, as far as a key of one workspace may see them.

Redis holds those that have not ended, SQL the others. A key that only some assistants are shared with sees a batch
if all its jobs are of these.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import Any, cast

from redis import Redis
from sqlalchemy import ColumnElement, Engine, exists, not_, true
from sqlmodel import Session, col, select

from producer.answers import answers, text
from producer.gateway.access import Caller
from producer.gateway.dialects.own.pages import Place, after
from producer.gateway.parts import Parts
from producer.gateway.problem import Kind, Problem
from producer.records import status_of
from schemas import names
from schemas.batch import BatchStatus
from schemas.tables import Batch, Job

_IDS_AT_ONCE = 200


class BatchRecords:
    """The batches of one queue and one database."""

    def __init__(self, parts: Parts) -> None:
        """Read these parts'."""
        self._redis: Redis = parts.producer.connection
        self._engine: Engine = parts.engine

    def find(self, batch_id: str, caller: Caller) -> BatchStatus:
        """Return the batch as it is now; Problem 404 if the caller knows none of this id."""
        with answers():
            found = self._open([batch_id])
        status = next(iter(found), None) or self._ended(batch_id)
        if status is None or status.workspace != caller.workspace or not self._is_shared(status, caller):
            raise Problem(Kind.NOT_FOUND, f"batch '{batch_id}' is not known", code="batch_unknown")
        return status

    def latest(self, caller: Caller, *, place: Place | None, limit: int) -> list[BatchStatus]:
        """Return batches after the place, by their creation, latest first."""
        # The queue first: a batch that ends in between is in SQL by then.
        with answers():
            unended = islice(self._open_of(caller, place), limit)
            found = {status.batch_id: status for status in unended}
        query = (
            select(Batch)
            .where(Batch.workspace == caller.workspace, after(place, Batch.created_at, Batch.id), _shared(caller))
            .order_by(col(Batch.created_at).desc(), col(Batch.id).desc())
            .limit(limit)
        )
        with Session(self._engine) as session:
            found |= {row.id: status_of(row) for row in session.exec(query)}
        return sorted(found.values(), key=lambda status: (status.created_ms, status.batch_id), reverse=True)[:limit]

    def threads(self, status: BatchStatus) -> list[str]:
        """Return the threads that jobs of the batch stood in, or those of the batch that it runs anew."""
        whole = Job.batch_id == (status.retry_of or status.batch_id)
        with Session(self._engine) as session:
            found = session.exec(select(Job.thread_id).where(whole, col(Job.thread_id).is_not(None)).distinct())
            return [each for each in found if each]

    def _open_of(self, caller: Caller, place: Place | None) -> Iterator[BatchStatus]:
        top: Any = "+inf" if place is None else ms_of(place.at)
        start = 0
        while True:
            ids = self._redis.zrevrangebyscore(names.BATCHES, top, "-inf", start=start, num=_IDS_AT_ONCE)
            found = [text(batch_id) for batch_id in cast("list[bytes]", ids)]
            for status in self._open(found):
                passed = place is not None and (status.created_ms, status.batch_id) >= (ms_of(place.at), place.id)
                if status.workspace == caller.workspace and not passed and self._is_shared(status, caller):
                    yield status
            if len(found) < _IDS_AT_ONCE:
                return
            start += _IDS_AT_ONCE

    def _open(self, batch_ids: list[str]) -> list[BatchStatus]:
        with self._redis.pipeline(transaction=False) as pipe:
            for batch_id in batch_ids:
                pipe.hgetall(names.batch(batch_id))
            stored = cast("list[dict[bytes, bytes]]", pipe.execute())
        return [
            BatchStatus.from_fields(batch_id, {text(field): text(value) for field, value in fields.items()})
            for batch_id, fields in zip(batch_ids, stored, strict=True)
            if fields
        ]

    def _ended(self, batch_id: str) -> BatchStatus | None:
        with Session(self._engine) as session:
            row = session.get(Batch, batch_id)
        return None if row is None else status_of(row)

    def _is_shared(self, status: BatchStatus, caller: Caller) -> bool:
        if caller.assistants is None:
            return True
        with answers():
            lines = cast("set[bytes]", self._redis.smembers(names.batch_lines(status.batch_id)))
        # A line is `<priority>|<batch>|<assistant>@<version>` (JobRecord.line).
        waiting = {text(line).split("|", 2)[2].split("@", 1)[0] for line in lines}
        with Session(self._engine) as session:
            ended = session.exec(select(_any_job(status.batch_id))).one()
            foreign = session.exec(select(_any_job(status.batch_id, not_of=caller))).one()
        return bool(waiting or ended) and not foreign and all(map(caller.may_use, waiting))


def ms_of(at: datetime) -> int:
    """Return a time as Redis has it."""
    return round(at.timestamp() * 1000)


def at_ms(ms: int) -> datetime:
    """Return a time of Redis as SQL has it."""
    return datetime.fromtimestamp(ms / 1000, UTC)


def _any_job(batch_id: Any, *, not_of: Caller | None = None) -> ColumnElement[bool]:
    those = [col(Job.batch_id) == batch_id]
    if not_of is not None:
        those.append(col(Job.assistant).not_in(sorted(not_of.assistants or ())))
    return exists().where(*those)


def _shared(caller: Caller) -> ColumnElement[bool]:
    if caller.assistants is None:
        return true()
    return _any_job(Batch.id) & not_(_any_job(Batch.id, not_of=caller))
