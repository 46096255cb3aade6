"""What stands in for a job whose record cannot be read, so that it ends and its batch does."""

from __future__ import annotations

import json
from typing import Any

from pydantic import ValidationError

from schemas.job import InvokeJob, JobRecord, Rejection
from schemas.outcome import Code


def unreadable(job_id: str, raw: bytes | str, error: ValidationError) -> JobRecord:
    """Return a record that ends as failed, with the batch, row and assistant as far as they can be made out."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    why = f"the job's record cannot be read: {first['msg']}{f' at {place}' if place else ''}"
    found = _object(raw)
    wanted = _object(found.get("job"))
    # Whether it may be recorded, and who is to be told, hold for such an end too.
    unrecorded = any(wanted.get(name, False) is not False for name in ("do_not_record", "doNotRecord"))
    rejection = Rejection(code=Code.INTERNAL_ERROR, error=f"{why}; is the worker older than the producer?")
    try:
        return JobRecord(
            id=job_id,
            job=InvokeJob(assistant=wanted.get("assistant"), webhook=wanted.get("webhook"), do_not_record=unrecorded),
            batch_id=found.get("batch_id"),
            row=found.get("row"),
            rejection=rejection,
        )
    except ValidationError:
        job = InvokeJob(assistant="unknown/unknown/unknown", do_not_record=unrecorded)
        return JobRecord(id=job_id, job=job, rejection=rejection)


def _object(value: Any) -> dict[str, Any]:
    if isinstance(value, bytes | str):
        try:
            value = json.loads(value)
        except ValueError:
            return {}
    return value if isinstance(value, dict) else {}
