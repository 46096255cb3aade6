"""What one row of a batch came to, as a line of its output or error file (OpenAI's batch output objects). Pure."""

from __future__ import annotations

from typing import Any

from producer.gateway.bodies import Dialect, error_body
from producer.gateway.chat.completion import chat_completion, completion_id_of
from producer.gateway.failures import failure
from schemas.batch import BatchState
from schemas.outcome import Status
from schemas.result import JobResult

_NEVER_RAN = {
    Status.CANCELLED: ("batch_cancelled", "This request was not executed because the batch was cancelled."),
    Status.EXPIRED: ("batch_expired", "This request could not be executed before the completion window expired."),
}
_MISSED = {BatchState.CANCELLED: Status.CANCELLED, BatchState.EXPIRED: Status.EXPIRED}
_LOST = ("internal_error", "This request could not be read back from the queue; send it again.")


def answered(result: JobResult) -> dict[str, Any]:
    """Return the line of a row that succeeded, or that the provider or we could not answer."""
    if result.succeeded:
        body = chat_completion(result, completion_id=completion_id_of(result.job_id))
        body["created"] = int(result.finished_at.timestamp())
        return _line(result.job_id, result.custom_id, response=_response(result, 200, body))
    if result.status in _NEVER_RAN:
        return _line(result.job_id, result.custom_id, error=_error(result.status))
    problem = failure(result)
    body = error_body(Dialect.OPENAI, problem)
    return _line(result.job_id, result.custom_id, response=_response(result, problem.status, body))


def never_enqueued(row_id: str, custom_id: str | None, state: BatchState) -> dict[str, Any]:
    """Return the line of a row that has no job: the batch's end came before it."""
    return _line(row_id, custom_id, error=_error(_MISSED.get(state)))


def _line(
    row_id: str, custom_id: str | None, *, response: dict[str, Any] | None = None, error: dict[str, str] | None = None
) -> dict[str, Any]:
    line_id = f"batch_req_{row_id.removeprefix('batch_')}"
    return {"id": line_id, "custom_id": custom_id, "response": response, "error": error}


def _response(result: JobResult, status_code: int, body: dict[str, Any]) -> dict[str, Any]:
    return {"status_code": status_code, "request_id": result.job_id, "body": body}


def _error(status: Status | None) -> dict[str, str]:
    code, message = _LOST if status is None else _NEVER_RAN[status]
    return {"code": code, "message": message}
