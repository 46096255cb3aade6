"""Jobs as enqueue.lua takes them, in chunks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from producer.written_job import WrittenJob
from schemas.errors import ProducerError
from schemas.job import PRIORITY_MARKS, InvokeJob, JobRecord, Rejection

# One call of the script: as many as keep the server from others for a few ms.
CHUNK_JOBS = 500
# Large jobs are sent in smaller chunks, for several chunks are held at once.
CHUNK_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class RejectedRow:
    """A row that cannot run but must have its place in the batch's results."""

    job: InvokeJob
    rejection: Rejection


@dataclass(frozen=True, slots=True)
class NumberedJob:
    """A job whose row in the batch is given: each row once, in any order."""

    job: InvokeJob
    row: int


class Entry(NamedTuple):
    """One job as enqueue.lua takes it."""

    id: str
    record: str | bytes
    priority_mark: str
    route: str
    workspace: str
    thread_id: str
    row: int | str


def row_job_id(batch_id: str, row: int) -> str:
    """Return the id of a batch's row for which the caller gave none."""
    return f"{batch_id}.{row}"


def next_chunk(entries: Iterator[Entry]) -> list[Entry]:
    """Return the next CHUNK_JOBS jobs, or fewer that are large; none at the end."""
    chunk: list[Entry] = []
    size = 0
    for entry in entries:
        chunk.append(entry)
        size += len(entry.record)
        if len(chunk) == CHUNK_JOBS or size >= CHUNK_BYTES:
            break
    return chunk


def batch_entry(
    item: InvokeJob | WrittenJob | RejectedRow | NumberedJob,
    *,
    batch_id: str,
    row: int,
    within: Sequence[str] | None = None,
) -> Entry:
    """Return what is enqueued for a batch's row; `within` is as in JobRecord."""
    if isinstance(item, NumberedJob):
        return batch_entry(item.job, batch_id=batch_id, row=item.row, within=within)
    if isinstance(item, WrittenJob):
        job_id = row_job_id(batch_id, row)
        # As a JobRecord would be written; ids need no escape.
        record = b'{"id":"%b","job":%b,"batch_id":"%b","row":%d' % (job_id.encode(), item.json, batch_id.encode(), row)
        record += b"}" if within is None or item.thread_id is None else b',"within":%b}' % json.dumps(within).encode()
        return Entry(job_id, record, PRIORITY_MARKS["batch"], item.route, item.workspace, item.thread_id or "", row)
    rejection = item.rejection if isinstance(item, RejectedRow) else None
    job = item.job if isinstance(item, RejectedRow) else item
    job_id = job.id or row_job_id(batch_id, row)
    in_batch = {"batch_id": batch_id, "row": row, "rejection": rejection}
    return entry_of(record_of(job, id=job_id, within=within).model_copy(update=in_batch))


def record_of(job: InvokeJob, *, id: str, within: Sequence[str] | None) -> JobRecord:  # noqa: A002 - the field's name
    """Return the record of a job of no batch; `within` says something only where the job goes on with a thread."""
    bounded = within is not None and job.thread_id is not None
    return JobRecord(id=id, job=job, within=tuple(within or ()) if bounded else None)


def entry_of(record: JobRecord) -> Entry:
    """Return what is enqueued for this record."""
    job = record.job
    written = record.model_dump_json(exclude_defaults=True, by_alias=True)
    row = "" if record.row is None else record.row
    mark = PRIORITY_MARKS[record.priority]
    return Entry(record.id, written, mark, job.route, job.workspace, job.thread_id or "", row)


def refuse_other_workspaces(chunk: list[Entry], workspace: str) -> None:
    """Raise ProducerError for a job of another workspace than its batch's."""
    for entry in chunk:
        if entry.workspace != workspace:
            raise ProducerError(
                f"row {entry.row}: workspace '{entry.workspace}' in a batch of workspace '{workspace}'; "
                f"enqueue one batch a workspace"
            )
