"""What deliveries say of the end of a batch. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from schemas import money
from schemas.batch import BatchStatus
from schemas.webhook import Form


def batch_event_type(status: BatchStatus) -> str:
    """Return the type of the event that tells of the batch's end."""
    return f"batch.{status.state.value}"


def batch_event_id(status: BatchStatus) -> str:
    """Return the one id of a batch's end; a job may have the batch's name, and end in the same way."""
    return f"msg_{status.batch_id}_{status.state.value}_batch"


def batch_data(
    status: BatchStatus, *, created_at: datetime, finished_at: datetime, form: Form = Form.ASSISTQ
) -> dict[str, Any]:
    """Return what the event of a batch's end says: its counts, in OpenAI's form its id alone; nothing of its jobs."""
    if form is Form.OPENAI:
        return {"id": status.batch_id}
    return {
        "batch_id": status.batch_id,
        "state": status.state.value,
        "total": status.finished,
        "counts": {name.value: count for name, count in status.counts.items()},
        "requests": status.requests,
        "prompt_tokens": status.prompt_tokens,
        "completion_tokens": status.completion_tokens,
        "cost": money.amount(status.cost_nano),
        "created_at": created_at.isoformat(),
        "finished_at": finished_at.isoformat(),
    }
