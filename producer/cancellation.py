"""Calls one job off, wherever it is; see cancel.lua."""

from __future__ import annotations

from functools import cache

from schemas.errors import ProducerError
from schemas.scripts import read_script


@cache
def cancel_script() -> str:
    """Return the script; it takes the job's id as its one argument."""
    return read_script("producer", "cancel.lua")


def was_to_end(reply: int, job_id: str) -> bool:
    """Read the script's answer: False for a job that had ended, where nothing was changed.

    ProducerError for a job that the queue does not know, or does not know any more.
    """
    if reply < 0:
        raise ProducerError(f"job {job_id} is not known here, or it ended more than a day ago; look in SQL")
    return reply > 0
