"""OpenAI's error bodies, for the OpenAPI document."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


class ApiError(BaseModel):
    """What is wrong; `param` is the field at fault, `code` a stable word for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """An error in OpenAI's form."""

    error: ApiError


MEANINGS = {
    400: "The request cannot be answered as it asks",
    401: "There is no valid key",
    402: "A budget is used up",
    403: "The key may not do this",
    404: "There is no such model",
    408: "The body did not come in time",
    409: "The job was cancelled",
    413: "The body is too large",
    415: "The body is no JSON",
    422: "The `Idempotency-Key` came with another body before",
    429: "Too many requests; `Retry-After` says when to ask again",
    500: "The gateway failed",
    501: "This is not served",
    502: "The provider gave no usable answer",
    503: "The queue or the provider does not answer",
    504: "There was no answer in time",
}
OPENAI_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": meaning} for status, meaning in MEANINGS.items()
}
