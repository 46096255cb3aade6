"""The closed union of what can become of one attempt at a job.

Every outcome but Snoozed is final. Reason codes are part of the interface: results,
metrics and webhooks carry them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from schemas.chat import ToolCall


class Status(StrEnum):
    """The final state of a job."""

    SUCCEEDED = "succeeded"
    INVALID_OUTPUT = "invalid_output"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    OVER_BUDGET = "over_budget"


class Code(StrEnum):
    """Why a job did not succeed, or why it waits."""

    # final, the job's own
    BAD_ROW = "bad_row"
    PROVIDER_NOT_CONFIGURED = "provider_not_configured"
    ASSISTANT_UNKNOWN = "assistant_unknown"
    MISSING_VARIABLE = "missing_variable"
    BAD_TEMPLATE = "bad_template"
    NOTHING_TO_SEND = "nothing_to_send"
    TOO_LARGE_FOR_LIMIT = "too_large_for_limit"
    CONTEXT_LENGTH = "context_length"
    REQUEST_REFUSED = "request_refused"
    OUTPUT_NOT_JSON = "output_not_json"
    OUTPUT_NOT_VALID = "output_not_valid"
    OUTPUT_CUT_OFF = "output_cut_off"
    CONTENT_FILTER = "content_filter"
    REFUSED_BY_MODEL = "refused_by_model"
    STEP_LIMIT = "step_limit"
    TOOL_UNAVAILABLE = "tool_unavailable"
    TOOL_ANSWERS_MISSING = "tool_answers_missing"
    THREAD_UNKNOWN = "thread_unknown"
    INTERNAL_ERROR = "internal_error"
    KILLED_WORKERS = "killed_workers"
    BATCH_BUDGET = "batch_budget"
    WORKSPACE_BUDGET = "workspace_budget"
    NO_PRICE = "no_price"
    # the lane's: the job waits, nothing of its own is wrong
    PROVIDER_UNREACHABLE = "provider_unreachable"
    KEY_REFUSED = "key_refused"
    MODEL_UNKNOWN = "model_unknown"
    QUOTA_EXHAUSTED = "quota_exhausted"
    # the provider's, tried again: a wait, and final once the job's attempts are used up
    SERVER_FAULT = "server_fault"
    CONFLICT = "conflict"
    REPLY_LOST = "reply_lost"
    REPLY_MALFORMED = "reply_malformed"
    # waits that are no fault
    RATE_LIMITED = "rate_limited"
    LIMITER_WAIT = "limiter_wait"
    BUDGET_WAIT = "budget_wait"
    STORE_AWAY = "store_away"
    SUSPECT_WAIT = "suspect_wait"
    SHUTTING_DOWN = "shutting_down"


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The reply met the output spec; `output` is its value, text where there is no spec.

    `tool_calls` are those that the job's caller has to answer, in the thread's next job.
    """

    output: Any
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class InvalidOutput:
    """The provider answered, but not in the form that was asked for; the raw reply is kept."""

    code: Code
    error: str
    raw_reply: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The job cannot succeed, or has used up its attempts."""

    code: Code
    error: str


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Somebody called the job off."""


@dataclass(frozen=True, slots=True)
class Expired:
    """The job's completion window ended first."""


@dataclass(frozen=True, slots=True)
class OverBudget:
    """The spend cap of its batch or workspace was reached; `code` says whose."""

    code: Code
    error: str


@dataclass(frozen=True, slots=True)
class Snoozed:
    """The job waits and comes back; a wait is no failure.

    `burns_attempt` says whether this try counts against the job. `hold_lane` keeps the
    job's whole lane back for as long, because every job in it would meet the same wall.
    `fault` marks a wall that only a person can remove, or that may last.
    """

    delay_s: float
    code: Code
    reason: str
    burns_attempt: bool = False
    hold_lane: bool = False
    fault: bool = False


Final = Succeeded | InvalidOutput | Failed | Cancelled | Expired | OverBudget
Outcome = Final | Snoozed


def status_of(outcome: Final) -> Status:
    """Return the name under which a final outcome is stored, counted and published."""
    match outcome:
        case Succeeded():
            return Status.SUCCEEDED
        case InvalidOutput():
            return Status.INVALID_OUTPUT
        case Failed():
            return Status.FAILED
        case Cancelled():
            return Status.CANCELLED
        case Expired():
            return Status.EXPIRED
        case OverBudget():
            return Status.OVER_BUDGET
