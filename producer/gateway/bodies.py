"""The one map from problems to each dialect's error bodies, and from paths to dialects."""

from __future__ import annotations

import math
import re
from enum import StrEnum
from typing import Any

from fastapi.responses import JSONResponse

from producer.gateway.problem import Fault, Kind, Problem


class Dialect(StrEnum):
    """Whose form an answer has."""

    OPENAI = "openai"
    AGENT = "agent"
    LANGDOCK = "langdock"
    LANGDOCK_ATTACHMENT = "langdock-attachment"
    LANGTAIL = "langtail"
    OWN = "own"


# The first that matches says it. What nobody knows is Langtail's only if it could be one of its paths.
_DIALECT_OF_PATH = (
    (re.compile(r"/api/v1/compatibility/openai/"), Dialect.AGENT),
    (re.compile(r"/assistant/v1/"), Dialect.LANGDOCK),
    (re.compile(r"/attachment/v1/"), Dialect.LANGDOCK_ATTACHMENT),
    (re.compile(r"/v1/(jobs|job-batches|assistants|threads|webhooks)(/|$)"), Dialect.OWN),
    # Also what we do not serve of it: its clients read its form.
    (re.compile(r"/v1/"), Dialect.OPENAI),
    (re.compile(r"/(openapi\.json|healthz|readyz|metrics)$"), Dialect.OWN),
    (re.compile(r"/(v2/threads|list-deployments|project-prompt)\b"), Dialect.LANGTAIL),
    # More than four parts where one has a slash in it, percent-encoded.
    (re.compile(r"/[^/]+/[^/]+/[^/]+/[^/]"), Dialect.LANGTAIL),
)

_OPENAI_TYPES = {
    Kind.UNAUTHORIZED: "authentication_error",
    Kind.FORBIDDEN: "permission_error",
    Kind.NOT_FOUND: "not_found_error",
    Kind.RATE_LIMITED: "rate_limit_error",
    Kind.OVER_BUDGET: "insufficient_quota",
}
# Langtail says this one in a text of its own (CONTRACT row 3).
DEPLOYMENT_NOT_FOUND = "deployment_not_found"
_LANGTAIL_TYPES = {**_OPENAI_TYPES, Kind.NOT_FOUND: "not_found"}


def dialect_of(path: str) -> Dialect:
    """Return whose form an answer to a request for this path has."""
    return next((dialect for pattern, dialect in _DIALECT_OF_PATH if pattern.match(path)), Dialect.OWN)


def error_response(dialect: Dialect, problem: Problem) -> JSONResponse:
    """Return the problem in the dialect's form."""
    headers = {}
    if problem.retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(problem.retry_after_s)))
    if problem.kind is Kind.UNAUTHORIZED:
        headers["www-authenticate"] = "Bearer"
    media_type = "application/problem+json" if dialect is Dialect.OWN else "application/json"
    return JSONResponse(error_body(dialect, problem), problem.status, headers, media_type)


def error_body(dialect: Dialect, problem: Problem) -> dict[str, Any]:
    """Return the body of the problem in the dialect's form (CONTRACT.md section 0, OpenAI's errors, RFC 9457)."""
    match dialect:
        case Dialect.OPENAI:
            return {"error": _openai_error(problem, _OPENAI_TYPES)}
        case Dialect.LANGTAIL if problem.code == DEPLOYMENT_NOT_FOUND:
            return {"error": problem.message}
        case Dialect.LANGTAIL:
            return {"error": _openai_error(problem, _LANGTAIL_TYPES)}
        case Dialect.LANGDOCK:
            return {"message": problem.message}
        case Dialect.LANGDOCK_ATTACHMENT:
            # Uploads say `error`, deletions `message` and `errors` (CONTRACT.md 3.6).
            words: dict[str, Any] = {"error": problem.message, "message": problem.message}
            errors = [{"path": list(fault.where[1:]), "message": fault.what} for fault in problem.faults]
            return words | ({"errors": errors} if errors else {})
        case Dialect.AGENT:
            if problem.kind is Kind.UNPROCESSABLE:
                faults = problem.faults or (Fault(where=("body",), what=problem.message, type=problem.code),)
                return {"detail": [{"loc": list(f.where), "msg": f.what, "type": f.type} for f in faults]}
            # An OpenAI client reads `error`, others `detail`.
            return {"detail": problem.message, "error": _openai_error(problem, _OPENAI_TYPES)}
        case Dialect.OWN:
            return _problem_details(problem)


def _openai_error(problem: Problem, types: dict[Kind, str]) -> dict[str, Any]:
    server_side = problem.status >= 500
    type_ = types.get(problem.kind, "server_error" if server_side else "invalid_request_error")
    return {"message": problem.message, "type": type_, "param": problem.param, "code": problem.code}


def _problem_details(problem: Problem) -> dict[str, Any]:
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": problem.kind.name.replace("_", " ").capitalize(),
        "status": problem.status,
        "detail": problem.message,
        "code": problem.code,
    }
    if problem.faults:
        body["errors"] = [_fault_details(fault) for fault in problem.faults]
    return body


def _fault_details(fault: Fault) -> dict[str, Any]:
    told: dict[str, Any] = {"pointer": fault.place, "detail": fault.what}
    if fault.line is not None:
        told["line"] = fault.line
    if fault.column is not None:
        told["column"] = fault.column
    return told
