"""A batch: jobs that were submitted together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from schemas.outcome import Status

_RETRY = "_retry"
# Of nine digits at most: more were written by no one here.
_NUMBER = re.compile(r"[1-9][0-9]{0,8}")


class BatchState(StrEnum):
    """Where a batch is in its life."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


# What calls a batch off, and how it ends then: one that spends its cap comes to its end.
_CALLED_OFF = {
    "cancelled_ms": BatchState.CANCELLED,
    "expired_ms": BatchState.EXPIRED,
    "over_budget_ms": BatchState.COMPLETED,
}


def end_state(fields: Mapping[str, str]) -> BatchState:
    """Return the state in which a batch ends, or ended, by what called it off first; `fields` as in names.py."""
    marks = [mark for mark in _CALLED_OFF if mark in fields]
    return _CALLED_OFF[min(marks, key=lambda mark: int(fields[mark]))] if marks else BatchState.COMPLETED


def retry_id(root: str, number: int) -> str:
    """Return the id of the batch that runs rows of the batch `root` anew for the `number`-th time, from 1."""
    return f"{root}{_RETRY}{number}"


def number_after(stem: str, batch_ids: Iterable[str]) -> int:
    """Return the number after the highest that one of the ids has behind `stem`; 1 if none has one."""
    found = (_NUMBER.fullmatch(batch_id.removeprefix(stem)) for batch_id in batch_ids if batch_id.startswith(stem))
    return max((int(match[0]) for match in found if match), default=0) + 1


def next_retry_id(root: str, retries: Iterable[str]) -> str:
    """Return the id of the retry of `root` that comes after these, of which earlier ones may be gone."""
    return retry_id(root, number_after(f"{root}{_RETRY}", retries))


class BatchStatus(BaseModel):
    """The counts of a batch at one moment.

    `total` is None while its rows are still being submitted. `counts` has one entry per
    final status that occurred. Tokens and requests are those of the jobs that ended. While it
    is `paused` none of its jobs starts; while it is `cancelling` those that are left end as cancelled, while
    it is `expiring` as expired.
    Those that have not ended at `expires_ms` (ms since the epoch) end as expired, those that would
    pass `spend_cap_nano` as over_budget; money is in nanos (schemas/money.py). `cost_nano` is what the jobs that
    ended cost; of the cap `spent_nano` are used up, calls of unknown fate included, and `reserved_nano` are held
    by calls in flight. `retry_of` is the batch whose rows it runs anew.
    """

    model_config = ConfigDict(frozen=True)

    batch_id: str
    workspace: str
    label: str = ""
    state: BatchState
    total: int | None
    enqueued: int
    counts: dict[Status, int] = Field(default_factory=dict)
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    created_ms: int
    paused: bool = False
    cancelling: bool = False
    expiring: bool = False
    webhook: str | None = None
    expires_ms: int | None = None
    spend_cap_nano: int | None = None
    cost_nano: int = 0
    spent_nano: int = 0
    reserved_nano: int = 0
    retry_of: str | None = None

    @classmethod
    def from_fields(cls, batch_id: str, fields: dict[str, str]) -> BatchStatus:
        """Read the fields of the batch's hash in Redis (names.py, `aq:batch:<batch>`)."""
        counts = {status: int(fields[status]) for status in Status if status in fields}
        state = fields.get("state") or (BatchState.RUNNING if "started" in fields or counts else BatchState.QUEUED)
        ends = None if "state" in fields else end_state(fields)
        return cls(
            batch_id=batch_id,
            workspace=fields.get("workspace", ""),
            label=fields.get("label", ""),
            state=BatchState(state),
            total=int(fields["total"]) if "total" in fields else None,
            enqueued=int(fields.get("enqueued", "0")),
            counts=counts,
            requests=int(fields.get("requests", "0")),
            prompt_tokens=int(fields.get("prompt_tokens", "0")),
            completion_tokens=int(fields.get("completion_tokens", "0")),
            created_ms=int(fields.get("created_ms", "0")),
            paused="paused_ms" in fields,
            cancelling=ends is BatchState.CANCELLED,
            expiring=ends is BatchState.EXPIRED,
            webhook=fields.get("webhook") or None,
            expires_ms=int(fields["expires_ms"]) if "expires_ms" in fields else None,
            spend_cap_nano=int(fields["spend_cap_nano"]) if "spend_cap_nano" in fields else None,
            cost_nano=int(fields.get("cost_nano", "0")),
            spent_nano=int(fields.get("spent_nano", "0")),
            reserved_nano=int(fields.get("reserved_nano", "0")),
            retry_of=fields.get("retry_of"),
        )

    @property
    def finished(self) -> int:
        """Return how many of its jobs have ended."""
        return sum(self.counts.values())

    @property
    def ended(self) -> bool:
        """Return whether nothing of it is left to run."""
        return self.state in (BatchState.COMPLETED, BatchState.CANCELLED, BatchState.EXPIRED)
