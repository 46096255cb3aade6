"""The errors of Langdock's dialect, as its OpenAPI document says them (CONTRACT.md 3.7)."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

# Whatever the route: no key, not allowed, too many requests, our fault, not reachable.
_ALWAYS = (401, 403, 413, 429, 500, 503)


class LangdockError(BaseModel):
    """What was wrong."""

    message: str


class AttachmentError(LangdockError):
    """What was wrong: uploads say it as `error`, other calls as `message`, so both are sent."""

    error: str
    errors: list[Any] | None = None


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the declaration of a route that may answer these, beside those of every route."""
    return {status: {"model": LangdockError} for status in (*_ALWAYS, *statuses)}


def attachment_errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the same for the calls on attachments."""
    return {status: {"model": AttachmentError} for status in (*_ALWAYS, *statuses)}
