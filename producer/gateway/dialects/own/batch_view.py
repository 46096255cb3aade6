"""A batch as our own API shows it."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, Field

from producer.gateway.dialects.own.batch_records import at_ms
from schemas.batch import BatchState, BatchStatus
from schemas.money import amount
from schemas.outcome import Status


class BatchView(BaseModel):
    """A batch and its counts at this moment.

    `total` is null while its rows are still being submitted. `counts` has an entry for each final status that
    occurred, `finished` is their sum. Tokens, requests and cost are those of the jobs that ended; money is a
    decimal number as text. While it is `cancelling` or `expiring`, what is left of it ends as cancelled or expired.
    """

    id: str
    status: BatchState
    label: str
    total: int | None
    enqueued: int
    finished: int
    counts: dict[Status, int]
    requests: int
    prompt_tokens: int
    completion_tokens: int
    cost: str
    spend_cap: str | None
    webhook: str | None
    paused: bool
    cancelling: bool
    expiring: bool
    retry_of: str | None = Field(description="the batch whose rows it runs anew")
    created_at: datetime
    expires_at: datetime | None

    @property
    def ended(self) -> bool:
        """Return whether nothing of it is left to run."""
        return self.status in (BatchState.COMPLETED, BatchState.CANCELLED, BatchState.EXPIRED)


def view_of_batch(status: BatchStatus) -> BatchView:
    """Return what is shown of the batch."""
    shown = BatchView.model_fields.keys() & BatchStatus.model_fields.keys()
    return BatchView(
        **{name: getattr(status, name) for name in shown},
        id=status.batch_id,
        status=status.state,
        finished=status.finished,
        cost=amount(status.cost_nano),
        spend_cap=None if status.spend_cap_nano is None else amount(status.spend_cap_nano),
        created_at=at_ms(status.created_ms),
        expires_at=None if status.expires_ms is None else at_ms(status.expires_ms),
    )
