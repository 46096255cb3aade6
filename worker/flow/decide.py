"""Decide: (what happened, attempt) → outcome. Pure, and the only place that knows what is retried."""

from __future__ import annotations

import random
from collections.abc import Callable

from schemas.money import amount
from schemas.outcome import Cancelled, Code, Expired, Failed, Final, Outcome, OverBudget, Snoozed
from worker.limits.base import Later, TooLarge
from worker.providers.errors import (
    ContentFiltered,
    ContextLengthExceeded,
    KeyRefused,
    ModelUnknown,
    ProviderError,
    QuotaExhausted,
    RateLimited,
    ReplyLost,
    ReplyMalformed,
    RequestRefused,
    ServerFault,
    Unreachable,
)
from worker.queue.queue import CalledOff
from worker.spend.spending import Held, NoPrice, Over
from worker.tools.base import ToolsUnavailable

BACKOFF_BASE_S = 0.5
BACKOFF_CAP_S = 30.0
# A wall that stands in front of every job of the lane is tried again after this long.
UNREACHABLE_RETRY_S = 2.0
WALL_RETRY_S = 30.0
# What a 429 costs when the provider does not say how long, and the jitter put on top of what it says.
RATE_LIMITED_RETRY_S = 5.0
JITTER_S = 1.0
# A provider that asks for a longer wait is a wall that a person should hear of: a quota of a day, say.
LONG_WAIT_S = 120.0

# A workspace whose calls in flight hold the rest of its cap is looked at again after this long.
BUDGET_RETRY_S = 1.0
# One death says nothing of who caused it: all jobs of a process die with it.
DEATHS_AT_LEAST = 2

Random = Callable[[float, float], float]


def decide_called_off(called_off: CalledOff) -> Final:
    """Return how a job ends that was called off."""
    match called_off:
        case CalledOff.CANCELLED:
            return Cancelled()
        case CalledOff.EXPIRED:
            return Expired()
        case CalledOff.OVER_BUDGET:
            return OverBudget(code=Code.BATCH_BUDGET, error="the batch's spend cap was used up before the job's turn")


def decide_refusal(answer: Later | TooLarge, *, tokens: int) -> Outcome:
    """Judge a limiter's refusal to reserve."""
    match answer:
        case TooLarge(limit_tokens=limit):
            return Failed(
                code=Code.TOO_LARGE_FOR_LIMIT,
                error=f"the call needs about {tokens} tokens and the lane has {limit} a minute; "
                "shorten the prompt, lower max_tokens, or raise ASSISTQ_TPM",
            )
        case Later(wait_s=wait_s):
            return Snoozed(delay_s=wait_s, code=Code.LIMITER_WAIT, reason="the lane's limit is used up", hold_lane=True)


def decide_budget(against: NoPrice | Held | Over) -> Outcome:
    """Judge what stands against a reservation under a cap."""
    match against:
        case NoPrice(lane=lane):
            return Failed(
                code=Code.NO_PRICE,
                error=f"there is a spend cap and no price for model {lane.model} at {lane.provider}; "
                "set one under `prices` in the lanes file",
            )
        case Held(scope="batch"):
            # Its lines wait until one of its calls has ended, and the job in them.
            return Snoozed(
                delay_s=0, code=Code.BUDGET_WAIT, reason="calls in flight hold what is left of the batch's cap"
            )
        case Held():
            return Snoozed(
                delay_s=BUDGET_RETRY_S,
                code=Code.BUDGET_WAIT,
                reason="calls in flight hold what is left of the workspace's cap",
                hold_lane=True,
            )
        case Over(scope=scope, most_nano=most, spent_nano=spent, cap_nano=cap):
            return OverBudget(
                code=Code.BATCH_BUDGET if scope == "batch" else Code.WORKSPACE_BUDGET,
                error=f"the {scope} has spent {amount(spent)} of its cap of {amount(cap)}, "
                f"and this call may cost {amount(most)}",
            )


def decide_error(error: ProviderError, *, attempt: int, max_attempts: int, uniform: Random = random.uniform) -> Outcome:
    """Judge a failed provider call; `attempt` counts from 1 and includes this one."""
    match error:
        case Unreachable():
            return _wall(Code.PROVIDER_UNREACHABLE, error, UNREACHABLE_RETRY_S, uniform)
        case KeyRefused():
            return _wall(Code.KEY_REFUSED, error, WALL_RETRY_S, uniform)
        case ModelUnknown():
            return _wall(Code.MODEL_UNKNOWN, error, WALL_RETRY_S, uniform)
        case QuotaExhausted():
            return _wall(Code.QUOTA_EXHAUSTED, error, WALL_RETRY_S, uniform)
        case RateLimited():
            # Positive jitter: coming back before the provider's word is a second 429.
            asked_s = RATE_LIMITED_RETRY_S if error.retry_after_s is None else error.retry_after_s
            delay_s = asked_s + uniform(0, JITTER_S)
            long = asked_s > LONG_WAIT_S
            return Snoozed(delay_s=delay_s, code=Code.RATE_LIMITED, reason=str(error), hold_lane=True, fault=long)
        case ContentFiltered():
            return Failed(code=Code.CONTENT_FILTER, error=str(error))
        case ContextLengthExceeded():
            return Failed(code=Code.CONTEXT_LENGTH, error=str(error))
        case RequestRefused():
            return Failed(code=Code.REQUEST_REFUSED, error=str(error))
        case ServerFault() | ReplyLost() | ReplyMalformed():
            code = _code_of(error)
            if attempt >= max_attempts:
                return Failed(code=code, error=f"gave up after {attempt} attempts: {error}")
            backoff_s = uniform(0, min(BACKOFF_CAP_S, BACKOFF_BASE_S * 2**attempt))
            delay_s = max(backoff_s, error.retry_after_s or 0.0)
            return Snoozed(delay_s=delay_s, code=code, reason=str(error), burns_attempt=True)
        case _:
            raise AssertionError(f"no decision for {type(error).__name__}") from error


def decide_crash(error: Exception, *, attempt: int, max_attempts: int, uniform: Random = random.uniform) -> Outcome:
    """Judge an error of our own making: tried again like a provider's fault, for it may be the job's data."""
    what = f"{type(error).__name__}: {error}"
    if attempt >= max_attempts:
        return Failed(code=Code.INTERNAL_ERROR, error=f"gave up after {attempt} attempts: {what}")
    delay_s = uniform(0, min(BACKOFF_CAP_S, BACKOFF_BASE_S * 2**attempt))
    return Snoozed(delay_s=delay_s, code=Code.INTERNAL_ERROR, reason=what, burns_attempt=True)


def decide_deaths(deaths: int, *, max_kills: int) -> Failed | None:
    """Judge a job whose workers died while they ran it; None while it may run (again)."""
    if deaths < max(DEATHS_AT_LEAST, max_kills):
        return None
    return Failed(
        code=Code.KILLED_WORKERS,
        error=f"its worker died or stood still {deaths} times while it ran this job; what it bought until then is "
        "counted. See the workers' log and the kernel's for why (out of memory, a tool that crashes or blocks), "
        "then send it again as a new job",
    )


def is_suspect(deaths: int, *, max_kills: int) -> bool:
    """Return whether one death more would be the last one that the job may cause."""
    return decide_deaths(deaths, max_kills=max_kills) is None and (
        decide_deaths(deaths + 1, max_kills=max_kills) is not None
    )


def decide_tools(
    error: ToolsUnavailable, *, attempt: int, max_attempts: int, uniform: Random = random.uniform
) -> Outcome:
    """Judge tools that cannot be offered: a server that is away may come back, a mistake does not mend itself."""
    if error.configuration or attempt >= max_attempts:
        return Failed(code=Code.TOOL_UNAVAILABLE, error=str(error))
    delay_s = uniform(0, min(BACKOFF_CAP_S, BACKOFF_BASE_S * 2**attempt))
    return Snoozed(delay_s=delay_s, code=Code.TOOL_UNAVAILABLE, reason=str(error), burns_attempt=True)


def _code_of(error: ServerFault | ReplyLost | ReplyMalformed) -> Code:
    match error:
        case ServerFault():
            return Code.CONFLICT if error.http_status == 409 else Code.SERVER_FAULT
        case ReplyLost():
            return Code.REPLY_LOST
        case ReplyMalformed():
            return Code.REPLY_MALFORMED


def _wall(code: Code, error: ProviderError, delay_s: float, uniform: Random) -> Snoozed:
    return Snoozed(delay_s=delay_s + uniform(0, JITTER_S), code=code, reason=str(error), hold_lane=True, fault=True)
