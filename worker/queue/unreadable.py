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
    rejection = Rejection(code=Code.INTERNAL_ERROR, error=f"{why}; is the worker older than the producer?")
    try:
        return JobRecord(
            id=job_id,
            job=InvokeJob(assistant=_object(found.get("job")).get("assistant")),
            batch_id=found.get("batch_id"),
            row=found.get("row"),
            rejection=rejection,
        )
    except ValidationError:
        return JobRecord(id=job_id, job=InvokeJob(assistant="unknown/unknown/unknown"), rejection=rejection)


def _object(value: Any) -> dict[str, Any]:
    if isinstance(value, bytes | str):
        try:
            value = json.loads(value)
        except ValueError:
            return {}
    return value if isinstance(value, dict) else {}
