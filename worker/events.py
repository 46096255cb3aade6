"""What the core tells about itself: frozen events; metrics and logs subscribe.

Every event names its job and batch where it has them. No event carries a secret, a
prompt or an output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from schemas.lane import Lane


@dataclass(frozen=True, slots=True)
class JobStarted:
    """A worker claimed a job; `replayed_steps` were taken from its journal, not bought again."""

    job_id: str
    batch_id: str | None
    workspace: str
    assistant: str
    epoch: int
    waited_s: float
    replayed_steps: int


@dataclass(frozen=True, slots=True)
class LimiterWaited:
    """A job waited for its turn under the lane's limit."""

    job_id: str
    batch_id: str | None
    lane: Lane
    wait_s: float


@dataclass(frozen=True, slots=True)
class ProviderCalled:
    """A provider call ended; `outcome` is "ok" or a reason code, `cost_nano` is in nanos (schemas/money.py)."""

    job_id: str
    batch_id: str | None
    lane: Lane
    outcome: str
    http_status: int | None
    duration_s: float
    prompt_tokens: int
    completion_tokens: int
    cost_nano: int = 0


@dataclass(frozen=True, slots=True)
class ToolCalled:
    """A tool call of a model ended; a failure is an answer to the model."""

    job_id: str
    batch_id: str | None
    tool: str
    failed: bool
    duration_s: float


@dataclass(frozen=True, slots=True)
class ToolCrashed:
    """A tool raised an error that it did not foresee; the model got an answer, the traceback belongs in the log."""

    tool: str
    error: Exception


@dataclass(frozen=True, slots=True)
class JobSnoozed:
    """A job went back to wait."""

    job_id: str
    batch_id: str | None
    code: str
    reason: str
    delay_s: float


@dataclass(frozen=True, slots=True)
class JobEnded:
    """A job reached its final state, settled in SQL."""

    job_id: str
    batch_id: str | None
    workspace: str
    status: str
    code: str | None
    duration_s: float
    requests: int
    prompt_tokens: int
    completion_tokens: int
    attempts: int
    cost_nano: int = 0


@dataclass(frozen=True, slots=True)
class JobCrashed:
    """The flow met an error that it does not know; the traceback belongs in the log."""

    job_id: str
    batch_id: str | None
    error: Exception


@dataclass(frozen=True, slots=True)
class BatchEnded:
    """The last job of a batch ended and the batch's row is in SQL."""

    batch_id: str
    workspace: str
    state: str
    counts: dict[str, int]


@dataclass(frozen=True, slots=True)
class JobsRecovered:
    """Jobs whose lease had ended went back to their lines."""

    count: int


@dataclass(frozen=True, slots=True)
class StaleWorkRefused:
    """A worker wanted to write for a job that was no longer its own."""

    job_id: str
    batch_id: str | None
    at: str


@dataclass(frozen=True, slots=True)
class WebhookAttempted:
    """One POST of a delivery ended; `outcome` is delivered, retry or failed."""

    delivery_id: str
    batch_id: str | None
    job_id: str | None
    event_type: str
    outcome: str
    http_status: int | None
    duration_s: float


@dataclass(frozen=True, slots=True)
class OldRowsPruned:
    """What ended long ago was deleted from SQL: rows by kind."""

    rows: dict[str, int]


@dataclass(frozen=True, slots=True)
class ServiceFault:
    """A part that a worker needs (redis, sql, …) failed; the worker goes on and tries again."""

    part: str
    error: str


Event = (
    JobStarted
    | LimiterWaited
    | ProviderCalled
    | ToolCalled
    | ToolCrashed
    | JobSnoozed
    | JobEnded
    | JobCrashed
    | BatchEnded
    | JobsRecovered
    | StaleWorkRefused
    | WebhookAttempted
    | OldRowsPruned
    | ServiceFault
)
Subscriber = Callable[[Event], None]


class Events:
    """Hands each event to every subscriber, in the order of subscription."""

    def __init__(self, *subscribers: Subscriber) -> None:
        """Keep the subscribers; there is no way to add one later."""
        self._subscribers = subscribers

    def emit(self, event: Event) -> None:
        """Tell all subscribers; a subscriber must not raise."""
        for subscriber in self._subscribers:
            subscriber(event)
