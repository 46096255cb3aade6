"""RFC 9457's problem details as our own API's OpenAPI document declares them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

MEDIA_TYPE = "application/problem+json"


class ProblemDetails(BaseModel):
    """What is wrong with a request: what, where, and how to mend it."""

    type: str
    title: str
    status: int
    detail: str
    code: str = Field(description="a stable word for programs")
    errors: list[dict[str, Any]] | None = Field(
        default=None, description="each fault: `pointer` says where, `detail` what; of a file `line` and `column`"
    )


def _declared(description: str) -> dict[str, Any]:
    schema = ProblemDetails.model_json_schema()
    # Absent where there is none, never null.
    schema["properties"]["errors"] = {"type": "array", "items": {"type": "object"}}
    return {"description": description, "content": {MEDIA_TYPE: {"schema": schema}}}


# For the `responses` of a router.
PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: _declared("The request breaks its schema, or a value in it cannot be used"),
    401: _declared("No key, or one that is not valid"),
    403: _declared("The key lacks the scope, or the assistant is not shared with it"),
    404: _declared("There is no such thing in the key's workspace"),
    409: _declared("What is asked for does not fit the state that it is in"),
    413: _declared("The body is too large"),
    422: _declared("The Idempotency-Key came with another body before"),
    429: _declared("Too many requests with this key"),
    503: _declared("The queue or the database does not answer, or is full"),
    "default": _declared("Something else went wrong"),
}
