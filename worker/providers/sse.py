"""Server-sent events: what a service streams, read to its end."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import httpx
from httpx_sse import EventSource

from worker.providers.errors import ReplyMalformed

_MEDIA_TYPE = "text/event-stream"
_END = "[DONE]"
OnEvent = Callable[[Any], None]


@dataclass(frozen=True, slots=True)
class Stream:
    """The events of a stream, as the JSON values that they carry.

    `cut` tells how the stream ended if it did not end with `[DONE]`. The last words may
    have been said all the same: some services send no `[DONE]`.
    """

    events: tuple[Any, ...]
    cut: str | None


def is_stream(response: httpx.Response) -> bool:
    """Return whether the body of this answer is a stream of events."""
    content_type: str = response.headers.get("content-type", "")
    return content_type.partition(";")[0].strip().lower() == _MEDIA_TYPE


async def read_stream(response: httpx.Response, on_event: OnEvent | None = None) -> Stream:
    """Read the events up to `[DONE]`; raises ReplyMalformed for one that is no JSON.

    Each is told to `on_event` as it comes, but those that tell an error.

    What comes after `[DONE]` is not waited for, and the connection is not used again: there
    are servers that close it there, whatever their headers say.
    """
    events: list[Any] = []
    try:
        async with aclosing(EventSource(response).aiter_sse()) as received:
            async for event in received:
                if event.data.strip() == _END:
                    return Stream(events=tuple(events), cut=None)
                if event.data:
                    value = _value(event.data, response.status_code)
                    events.append({"error": value} if event.event == "error" and not _is_error(value) else value)
                    if on_event is not None and not _tells_error(events[-1]):
                        on_event(value)
    except (httpx.TimeoutException, httpx.TransportError) as exc:
        return Stream(events=tuple(events), cut=f"the stream was cut: {str(exc) or type(exc).__name__}")
    return Stream(events=tuple(events), cut=f"the stream ended without {_END}")


def _value(data: str, status: int) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise ReplyMalformed(f"an event that is no JSON: {data[:200]!r}", http_status=status) from exc


def _tells_error(value: Any) -> bool:
    # Some servers say `"error": null` in every chunk.
    return _is_error(value) and bool(value.get("error") or value.get("type") == "error")


def _is_error(value: Any) -> bool:
    return isinstance(value, dict) and ("error" in value or value.get("type") == "error")
