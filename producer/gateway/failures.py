"""From a job that did not succeed, or an error of ours, to the problem that the caller is told."""

from __future__ import annotations

from typing import Any

import redis.exceptions
import sqlalchemy.exc
import structlog

from producer.answers import refused
from producer.gateway.problem import Kind, Problem
from schemas.errors import AssistqError, InputError, QueueFull
from schemas.outcome import Code, Status
from schemas.result import JobResult

_log = structlog.get_logger("assistq.gateway")

_KINDS = {
    Code.BAD_ROW: Kind.BAD_REQUEST,
    Code.ASSISTANT_UNKNOWN: Kind.NOT_FOUND,
    Code.MISSING_VARIABLE: Kind.BAD_REQUEST,
    Code.BAD_TEMPLATE: Kind.BAD_REQUEST,
    Code.NOTHING_TO_SEND: Kind.BAD_REQUEST,
    Code.TOO_LARGE_FOR_LIMIT: Kind.BAD_REQUEST,
    Code.CONTEXT_LENGTH: Kind.BAD_REQUEST,
    Code.REQUEST_REFUSED: Kind.BAD_REQUEST,
    Code.CONTENT_FILTER: Kind.BAD_REQUEST,
    Code.REFUSED_BY_MODEL: Kind.BAD_REQUEST,
    Code.TOOL_ANSWERS_MISSING: Kind.BAD_REQUEST,
    Code.MODEL_UNKNOWN: Kind.NOT_FOUND,
    Code.THREAD_UNKNOWN: Kind.NOT_FOUND,
    Code.BATCH_BUDGET: Kind.OVER_BUDGET,
    Code.WORKSPACE_BUDGET: Kind.OVER_BUDGET,
    Code.NO_PRICE: Kind.OVER_BUDGET,
    Code.RATE_LIMITED: Kind.RATE_LIMITED,
    Code.INTERNAL_ERROR: Kind.INTERNAL,
    Code.KILLED_WORKERS: Kind.INTERNAL,
    Code.PROVIDER_NOT_CONFIGURED: Kind.UNAVAILABLE,
    Code.PROVIDER_UNREACHABLE: Kind.UNAVAILABLE,
    Code.KEY_REFUSED: Kind.UNAVAILABLE,
    Code.QUOTA_EXHAUSTED: Kind.UNAVAILABLE,
}


def failure(result: JobResult) -> Problem:
    """Return why the job has no answer; what is not the caller's to mend is the provider's failure."""
    if result.status is Status.CANCELLED:
        return Problem(Kind.CONFLICT, f"job {result.job_id} was cancelled", code="cancelled")
    if result.status is Status.EXPIRED:
        return Problem(Kind.TIMED_OUT, f"job {result.job_id} expired before it could run", code="expired")
    code = result.error_code or Code.INTERNAL_ERROR
    return Problem(kind_of(code), result.error or f"job {result.job_id} ended as {result.status}", code=code)


def kind_of(code: str) -> Kind:
    """Return the kind of problem that a job's reason code is."""
    return _KINDS.get(Code(code), Kind.PROVIDER_FAILED)


# What says that a server behind the gateway is away, not that it was asked wrongly.
SERVER_ERRORS = (
    redis.exceptions.RedisError,
    sqlalchemy.exc.OperationalError,
    sqlalchemy.exc.InterfaceError,
    sqlalchemy.exc.TimeoutError,
)


def refusal(error: Exception) -> Problem:
    """Return the problem that an AssistqError, or one of SERVER_ERRORS, is to a caller."""
    match error:
        case InputError():
            return Problem(Kind.BAD_REQUEST, str(error), code="invalid_request")
        case QueueFull():
            return Problem(Kind.UNAVAILABLE, str(error), code="queue_full", retry_after_s=1)
        case AssistqError():
            return Problem(Kind.UNAVAILABLE, str(error), code="queue_unavailable", retry_after_s=1)
        case redis.exceptions.RedisError() if full := refused(error):
            return refusal(full)
        case redis.exceptions.RedisError():
            what, code = "the queue does not answer; try again", "queue_unavailable"
        case _:
            what, code = "the database does not answer; try again", "database_unavailable"
    return Problem(Kind.UNAVAILABLE, what, code=code, retry_after_s=1)


def told_of(error: Exception, **about: Any) -> Problem:
    """Return what the caller is told of any error, in a stream that has begun too; a fault of ours is logged."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, (AssistqError, *SERVER_ERRORS)):
        return refusal(error)
    _log.error("request_crashed", exc_info=error, **about)
    return Problem(Kind.INTERNAL, "the gateway failed on this request; its log says why")
