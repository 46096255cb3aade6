"""Decide: (what happened, attempt) → outcome. Pure, and the only place that knows what is retried."""

from __future__ import annotations

import random
from collections.abc import Callable

from schemas.outcome import Code, Failed, InvalidOutput, Outcome, Snoozed, Succeeded
from schemas.output import OutputSpec
from worker.flow.output import OutputError, read_output
from worker.limits.base import Later, TooLarge
from worker.providers.errors import (
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
from worker.queue.steps import ReplyStep

BACKOFF_BASE_S = 0.5
BACKOFF_CAP_S = 30.0
# A wall that stands in front of every job of the lane is tried again after this long.
UNREACHABLE_RETRY_S = 2.0
WALL_RETRY_S = 30.0
# What a 429 costs when the provider does not say how long, and the jitter put on top of what it says.
RATE_LIMITED_RETRY_S = 5.0
JITTER_S = 1.0

Random = Callable[[float, float], float]


def decide_reply(reply: ReplyStep, output: OutputSpec | None) -> Outcome:
    """Judge a provider's reply by the output spec."""
    if reply.finish_reason == "content_filter":
        return Failed(code=Code.CONTENT_FILTER, error="the provider's content filter held the answer back")
    if reply.refusal:
        return Failed(code=Code.CONTENT_FILTER, error=f"the model refused: {reply.refusal}")
    if output is None:
        return Succeeded(output=reply.content)
    try:
        return Succeeded(output=read_output(output, reply.content))
    except OutputError as exc:
        if reply.finish_reason == "length":
            return InvalidOutput(
                code=Code.OUTPUT_CUT_OFF,
                error=f"the reply was cut off at max_tokens ({exc}); raise max_tokens",
                raw_reply=reply.content,
            )
        return InvalidOutput(code=exc.code, error=str(exc), raw_reply=reply.content)


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
            return Snoozed(delay_s=wait_s, code=Code.LIMITER_WAIT, reason="the lane's limit is used up", hold_line=True)


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
            return Snoozed(delay_s=delay_s, code=Code.RATE_LIMITED, reason=str(error), hold_line=True)
        case ContextLengthExceeded():
            return Failed(code=Code.CONTEXT_LENGTH, error=str(error))
        case RequestRefused():
            return Failed(code=Code.REQUEST_REFUSED, error=str(error))
        case ServerFault() | ReplyLost() | ReplyMalformed():
            if attempt >= max_attempts:
                return Failed(code=Code.ATTEMPTS_EXHAUSTED, error=f"gave up after {attempt} attempts: {error}")
            backoff_s = uniform(0, min(BACKOFF_CAP_S, BACKOFF_BASE_S * 2**attempt))
            delay_s = max(backoff_s, error.retry_after_s or 0.0)
            return Snoozed(delay_s=delay_s, code=Code.PROVIDER_FAULT, reason=str(error), burns_attempt=True)
        case _:
            raise AssertionError(f"no decision for {type(error).__name__}") from error


def decide_crash(error: Exception, *, attempt: int, max_attempts: int, uniform: Random = random.uniform) -> Outcome:
    """Judge an error of our own making: tried again like a provider's fault, for it may be the job's data."""
    what = f"{type(error).__name__}: {error}"
    if attempt >= max_attempts:
        return Failed(code=Code.INTERNAL_ERROR, error=f"gave up after {attempt} attempts: {what}")
    delay_s = uniform(0, min(BACKOFF_CAP_S, BACKOFF_BASE_S * 2**attempt))
    return Snoozed(delay_s=delay_s, code=Code.INTERNAL_ERROR, reason=what, burns_attempt=True)


def _wall(code: Code, error: ProviderError, delay_s: float, uniform: Random) -> Snoozed:
    return Snoozed(delay_s=delay_s + uniform(0, JITTER_S), code=code, reason=str(error), hold_line=True, fault=True)
