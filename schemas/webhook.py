"""Webhook events, by the Standard Webhooks specification."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict

from schemas.errors import InputError

# What an index of PostgreSQL takes beside a workspace's name.
URL_MAX_BYTES = 2048


class DeliveryState(StrEnum):
    """Where a delivery is in its life."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


class Form(StrEnum):
    """How an endpoint is told of batches: as assistq does, or as OpenAI does."""

    ASSISTQ = "assistq"
    OPENAI = "openai"


class WebhookEvent(BaseModel):
    """The body of a webhook: `{type, timestamp, data}`."""

    model_config = ConfigDict(frozen=True)

    type: str
    timestamp: datetime
    data: dict[str, Any]


def checked_url(url: str) -> str:
    """Return the address of a webhook as it is; InputError if nothing can be sent there."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not url.isprintable() or " " in url:
        raise InputError(f"webhook {url!r} is no address", mend="write a URL such as https://example.com/hook")
    if len(url.encode()) > URL_MAX_BYTES:
        raise InputError(f"webhook {url[:60]}… has more than {URL_MAX_BYTES} bytes", mend="write a shorter URL")
    return url
