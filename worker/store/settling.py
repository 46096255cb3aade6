"""The rows that settlements leave, written for a group of jobs in one transaction."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import func, insert, text, tuple_, update
from sqlmodel import Session, SQLModel, col, select

from schemas.deliveries import new_delivery, with_free_ids
from schemas.result import JobResult
from schemas.tables import Delivery, Job, Thread, ThreadMessage
from worker.store.base import Settlement
from worker.store.ended import ends_of
from worker.webhooks.events import job_data, job_event_id, job_event_type

_ThreadKey = tuple[str, str]
# Who stands still while it holds a thread must not hold up those that are settled with ours.
_LOCKED_WITHIN_MS = 1500


def settle_all(session: Session, settlements: Sequence[Settlement]) -> list[JobResult]:
    """Write the ends of these jobs; return the results that stand, in their order.

    The primary key makes an end happen once: a worker that was stopped for longer than its
    lease finds the row of the one that took over, and the first commit stands. The delivery that
    tells of the end is written with it; see schemas.deliveries.with_free_ids for one of an end before.
    """
    stands = ends_of(session, {settlement.record.id for settlement in settlements})
    fresh: list[Settlement] = []
    for settlement in settlements:
        if settlement.record.id not in stands:
            stands[settlement.record.id] = settlement.result
            fresh.append(settlement)
    _insert(session, Job, map(_job_values, fresh))
    deliveries = with_free_ids(session, [_delivery(settlement, url) for settlement, url in _to_be_told(fresh)])
    _insert(session, Delivery, (delivery.model_dump() for delivery in deliveries))
    _append_turns(session, [settlement for settlement in fresh if settlement.new_messages])
    return [_standing(stands[settlement.record.id], settlement) for settlement in settlements]


def _standing(stands: JobResult, settlement: Settlement) -> JobResult:
    """Return the end that stands, with its content where the row may not have it and the settlement does.

    As after a crash between the commit and the job's end in Redis, where the journal kept the result.
    """
    ours = settlement.result
    is_ours = (stands.status, stands.finished_at) == (ours.status, ours.finished_at)
    return ours if is_ours and settlement.record.job.do_not_record else stands


def _to_be_told(settlements: Iterable[Settlement]) -> Iterator[tuple[Settlement, str]]:
    for settlement in settlements:
        if settlement.record.job.webhook is not None:
            yield settlement, settlement.record.job.webhook


def _delivery(settlement: Settlement, url: str) -> Delivery:
    record = settlement.record
    unrecorded = record.job.do_not_record
    result = settlement.result.without_content() if unrecorded else settlement.result
    return new_delivery(
        id=job_event_id(result),
        workspace=record.job.workspace,
        event_type=job_event_type(result),
        url=url,
        data=job_data(result, {} if unrecorded else record.job.metadata),
        now=result.finished_at,
        batch_id=result.batch_id,
        job_id=record.id,
        unrecorded=unrecorded,
    )


def _append_turns(session: Session, settlements: Iterable[Settlement]) -> None:
    turns = [(_thread_of(settlement), settlement) for settlement in settlements if settlement.result.thread_id]
    if not turns:
        return
    keys = {key for key, _ in turns}
    in_keys = tuple_(col(Thread.workspace), col(Thread.id)).in_(keys)
    # Locked, in one order for all: their owner may write into them meanwhile, and delete them (SQLite has no locks
    # of rows; what is lost there is tried again).
    if session.connection().dialect.name == "postgresql":
        session.connection().execute(text(f"SET LOCAL lock_timeout = {_LOCKED_WITHIN_MS}"))
    found = select(Thread).where(in_keys).order_by(col(Thread.workspace), col(Thread.id)).with_for_update()
    threads = {(thread.workspace, thread.id): thread for thread in session.exec(found)}
    turns = [(key, each) for key, each in turns if key not in threads or _takes(session, threads[key], each)]
    next_positions = _next_positions(session, threads)
    new_threads: dict[_ThreadKey, dict[str, Any]] = {}
    messages: list[dict[str, Any]] = []
    for key, settlement in turns:
        ref = dict([settlement.provider_ref]) if settlement.provider_ref else {}
        known = threads.get(key)
        if known is None:
            made = new_threads.setdefault(key, _thread_values(key, settlement))
            made["provider_refs"] |= ref
        elif ref:
            known.provider_refs = {**known.provider_refs, **ref}
        first = next_positions.get(key, 0)
        messages += _message_values(key, settlement, first=first)
        next_positions[key] = first + len(settlement.new_messages)
    _insert(session, Thread, new_threads.values())
    _insert(session, ThreadMessage, messages)


def _takes(session: Session, thread: Thread, settlement: Settlement) -> bool:
    """Return whether the thread takes the turn; one that was deleted begins anew with a job that was enqueued since.

    What is left of a conversation that was deleted while its job ran is not kept.
    """
    if thread.deleted_at is None:
        return True
    if settlement.enqueued_ms / 1000 <= thread.deleted_at.timestamp():
        return False
    # Another job may have left its turn while the thread was being deleted.
    of_thread = (col(ThreadMessage.workspace) == thread.workspace, col(ThreadMessage.thread_id) == thread.id)
    left = update(ThreadMessage).where(*of_thread, col(ThreadMessage.deleted_at).is_(None))
    session.connection().execute(left.values(deleted_at=thread.deleted_at))
    thread.deleted_at, thread.created_at = None, settlement.result.finished_at
    thread.provider_refs, thread.thread_metadata, thread.create_log = {}, None, None
    return True


def _next_positions(session: Session, keys: Iterable[_ThreadKey]) -> dict[_ThreadKey, int]:
    wanted = list(keys)
    if not wanted:
        return {}
    columns = col(ThreadMessage.workspace), col(ThreadMessage.thread_id)
    query = select(*columns, func.max(ThreadMessage.position)).where(tuple_(*columns).in_(wanted)).group_by(*columns)
    return {(workspace, thread_id): last + 1 for workspace, thread_id, last in session.exec(query)}


def _insert(session: Session, table: type[SQLModel], rows: Iterable[dict[str, Any]]) -> None:
    values = list(rows)
    if values:
        # Not through the ORM's unit of work, which costs as much again for each row.
        session.connection().execute(insert(table.__table__), values)  # type: ignore[attr-defined]


def _thread_of(settlement: Settlement) -> _ThreadKey:
    return settlement.record.job.workspace, settlement.result.thread_id or ""


def _thread_values(key: _ThreadKey, settlement: Settlement) -> dict[str, Any]:
    workspace, thread_id = key
    return {"workspace": workspace, "id": thread_id, "provider_refs": {}, "created_at": settlement.result.finished_at}


def _message_values(key: _ThreadKey, settlement: Settlement, *, first: int) -> list[dict[str, Any]]:
    workspace, thread_id = key
    return [
        {
            "workspace": workspace,
            "thread_id": thread_id,
            "position": position,
            "job_id": settlement.record.id,
            "role": message.role,
            "content": message.text,
            "message": message.model_dump(mode="json", exclude_defaults=True),
            "created_at": settlement.result.finished_at,
        }
        for position, message in enumerate(settlement.new_messages, start=first)
    ]


def _job_values(settlement: Settlement) -> dict[str, Any]:
    record = settlement.record
    result = settlement.result.without_content() if record.job.do_not_record else settlement.result
    values: dict[str, Any] = result.model_dump(mode="python", exclude={"job_id", "status", "turn"})
    for name in ("tool_calls", "choices", "retrieved"):
        values[name] = list(values[name]) or None
    return {
        **values,
        "id": record.id,
        "workspace": record.job.workspace,
        "status": result.status.value,
        "epoch": settlement.epoch,
        "variables": {} if record.job.do_not_record else record.job.variables,
        "metadata": {} if record.job.do_not_record else record.job.metadata,
        "request": _to_run_anew(settlement),
        "enqueued_at": datetime.fromtimestamp(settlement.enqueued_ms / 1000, UTC),
    }


def _to_run_anew(settlement: Settlement) -> dict[str, Any] | None:
    record = settlement.record
    if settlement.result.succeeded or record.job.do_not_record or record.rejection is not None:
        return None
    return record.job.model_dump(mode="json", exclude_defaults=True, by_alias=True)
