"""The ids of the runs of one file: `F`, then `F_2`, `F_3`, … for each time that all its rows are run anew."""

from __future__ import annotations

from collections.abc import Sequence

from producer.client import Producer
from producer.records import Records
from schemas.batch import number_after


def run_id(producer: Producer, records: Records, file_id: str, *, ended: Sequence[str], again: bool) -> str:
    """Return the id of the run to begin, or to go on with; `ended` are those that SQL knows, in any order.

    One that has not ended is gone on with, whatever was pruned meanwhile. Else it comes after the highest that
    is known, for earlier ones may be gone. One that Redis remembers and SQL does not has ended and was pruned:
    `again` passes it over. Without it, it is taken, and has no results: more likely this is not the database
    that its workers write to, and a new run would be paid for in vain.
    """
    unfinished = [each.batch_id for each in producer.open_batches() if _number(file_id, each.batch_id)]
    if unfinished:
        return max(unfinished, key=lambda batch_id: _number(file_id, batch_id))
    number = max((_number(file_id, batch_id) for batch_id in ended), default=0) + 1
    while again and _is_pruned(producer, records, _id(file_id, number)):
        number += 1
    return _id(file_id, number)


def _id(file_id: str, number: int) -> str:
    return file_id if number == 1 else f"{file_id}_{number}"


def _number(file_id: str, batch_id: str) -> int:
    """Return which run of the file it is, from 1; 0 if it is none."""
    if batch_id == file_id:
        return 1
    return number_after(f"{file_id}_", [batch_id]) - 1


def _is_pruned(producer: Producer, records: Records, batch_id: str) -> bool:
    status = producer.batch(batch_id).status()
    # The row is there before Redis says that it ended.
    return status is not None and status.ended and records.batch(batch_id) is None
