"""Running anew what did not succeed: the rows of a batch that ended, as a batch of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from itertools import chain

from pydantic import ValidationError

from producer.client import Producer
from producer.entries import NumberedJob
from producer.handles import BatchHandle
from producer.records import Records
from schemas.batch import BatchStatus, next_retry_id
from schemas.errors import InputError
from schemas.job import InvokeJob
from schemas.money import amount
from schemas.outcome import Status
from schemas.tables import Job


@dataclass(frozen=True, slots=True)
class Retried:
    """What came of a retry.

    `root` is the batch whose rows these are. `batch` runs `rows` of them anew, None if there were none.
    `left_out` did not succeed either and cannot be run anew: rejected rows, and jobs that are not recorded.
    """

    root: str
    batch: BatchHandle | None
    rows: int
    left_out: int


def retry(
    producer: Producer,
    records: Records,
    batch_id: str,
    *,
    webhook: str | None = None,
    expires_at: datetime | None = None,
    spend_cap: Decimal | float | None = None,
    within: Sequence[str] | None = None,
) -> Retried:
    """Enqueue the rows of a batch that did not succeed as another batch, each under its row number.

    A retry's id stands for the batch whose rows it ran. The webhook is that batch's unless one is given; an
    end by time, and a cap on what the retry spends, are its own. After an interruption the same call goes on,
    and enqueues nothing twice. InputError for a batch that is not known or has not ended, nor its last
    retry, and for one with a spend cap if none is given: the retry would have none. `within` is as in
    Producer.enqueue.
    """
    root = _root(producer, records, batch_id)
    if root.spend_cap_nano is not None and spend_cap is None:
        raise InputError(
            f"batch '{root.batch_id}' had a spend cap of {amount(root.spend_cap_nano)}, "
            f"of which {amount(root.cost_nano)} was spent",
            mend="say with --spend-cap what its retry may spend",
        )
    before, new_id = _runs(producer, records, root.batch_id)
    rows = _Rows(records, [root.batch_id, *before])
    jobs = iter(rows)
    first = next(jobs, None)
    if first is None:
        return Retried(root=root.batch_id, batch=None, rows=0, left_out=rows.left_out)
    batch = producer.enqueue_many(
        chain([first], jobs),
        batch_id=new_id,
        webhook=webhook or root.webhook,
        label=root.label,
        expires_at=expires_at,
        spend_cap=spend_cap,
        retry_of=root.batch_id,
        within=within,
    )
    return Retried(root=root.batch_id, batch=batch, rows=rows.taken, left_out=rows.left_out)


class _Rows:
    """The jobs to run anew, in the order of their rows; counts as it is read."""

    def __init__(self, records: Records, batch_ids: list[str]) -> None:
        self._runs = records.latest_runs(batch_ids, with_requests=True)
        self.taken = 0
        self.left_out = 0

    def __iter__(self) -> Iterator[NumberedJob]:
        for run in self._runs:
            if run.status == Status.SUCCEEDED:
                continue
            job = _job_of(run)
            if job is None or run.row is None:
                self.left_out += 1
            else:
                self.taken += 1
                yield NumberedJob(job=job, row=run.row)


def _job_of(run: Job) -> InvokeJob | None:
    if run.request is None:
        return None
    try:
        # Its id would be that of the job which has ended.
        return InvokeJob.model_validate({**run.request, "id": None})
    except ValidationError:
        return None


def _root(producer: Producer, records: Records, batch_id: str) -> BatchStatus:
    found = records.batch(batch_id)
    if found is None:
        open_one = producer.batch(batch_id).status()
        if open_one is None:
            raise InputError(f"batch '{batch_id}' is not known", mend="`assistq status` lists the batches")
        if open_one.retry_of is None:
            raise _not_ended(batch_id)
        found = open_one
    if found.retry_of is None:
        return found
    root = records.batch(found.retry_of)
    if root is None:
        raise InputError(
            f"batch '{found.retry_of}', whose rows {batch_id} ran, is not in the database",
            mend="check ASSISTQ_DATABASE_URL",
        )
    return root


def _runs(producer: Producer, records: Records, root: str) -> tuple[list[str], str]:
    """Return the retries that ended, and the id of the one to enqueue: the next, or one that was interrupted."""
    # The queue first: a retry that ends in between is in SQL by then.
    unfinished = [each for each in producer.open_batches() if each.retry_of == root]
    ended = [each.batch_id for each in records.retries_of(root)]
    for each in unfinished:
        if each.batch_id not in ended:
            if each.total is not None:
                raise _not_ended(each.batch_id)
            return ended, each.batch_id
    known = list(ended)
    while (taken := _taken(producer, records, new_id := next_retry_id(root, known))) is not None:
        if taken.retry_of != root:
            raise InputError(
                f"a batch '{new_id}' exists already, which is no retry of {root}", mend="name batches otherwise"
            )
        if records.batch(new_id) is not None:
            # Another one has run it since we looked.
            return _runs(producer, records, root)
        if not taken.ended:
            raise _not_ended(new_id)
        # It was pruned, and the queue, which knows its rows, would take none of them again.
        known.append(new_id)
    return ended, new_id


def _taken(producer: Producer, records: Records, batch_id: str) -> BatchStatus | None:
    return records.batch(batch_id) or producer.batch(batch_id).status()


def _not_ended(batch_id: str) -> InputError:
    return InputError(
        f"batch '{batch_id}' has not ended",
        mend=f"`assistq status {batch_id} --watch` waits for its end, `assistq cancel {batch_id}` brings it about",
    )
