"""The agent dialect's error bodies, for the OpenAPI document."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from producer.gateway.dialects.openai.errors import MEANINGS, ApiError


class AgentErrorBody(BaseModel):
    """An error: `detail` for its own clients, `error` for OpenAI's."""

    detail: str
    error: ApiError


class ValidationFault(BaseModel):
    """One thing that is wrong in a request, and where."""

    loc: list[str | int]
    msg: str
    type: str


class HTTPValidationError(BaseModel):
    """Everything that is wrong in a request."""

    detail: list[ValidationFault]


AGENT_ERRORS: dict[int | str, dict[str, Any]] = {
    **{status: {"model": AgentErrorBody, "description": meaning} for status, meaning in MEANINGS.items()},
    404: {"model": AgentErrorBody, "description": "There is no such agent or session"},
    422: {"model": HTTPValidationError, "description": "The request breaks its schema"},
}
