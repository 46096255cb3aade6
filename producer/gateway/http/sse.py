"""Server-sent events as an HTTP answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import suppress
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

# A proxy closes a connection that is silent for a minute; and only who is sent something is known to have vanished.
_PING_EVERY_S = 15.0
DONE = "data: [DONE]\n\n"


def event(data: Any, *, name: str | None = None, event_id: str | None = None) -> str:
    """Return one event whose data is this JSON value."""
    head = (f"id: {event_id}\n" if event_id is not None else "") + (f"event: {name}\n" if name is not None else "")
    return f"{head}data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n"


async def event_stream(events: AsyncIterator[str], *, headers: Mapping[str, str] | None = None) -> StreamingResponse:
    """Return the answer that sends these events, with a comment where they pause for long.

    It waits for the first of them: what `events` raises before it is the request's own error. Later they
    must say what went wrong themselves. They are closed when the client has gone.
    """
    first = await anext(events)
    said = {"cache-control": "no-cache", "x-accel-buffering": "no", **(headers or {})}
    return _EventStream(first, events, headers=said)


class _EventStream(StreamingResponse):
    """Closes its events at once when the client has gone, also one that was not reading."""

    def __init__(self, first: str, events: AsyncIterator[str], *, headers: Mapping[str, str]) -> None:
        self._sent = _with_pings(first, events)
        self._events = events
        super().__init__(self._sent, headers=headers, media_type="text/event-stream")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._sent.aclose()
            # Where not even the first was sent.
            await self._events.aclose()  # type: ignore[attr-defined]


async def _with_pings(first: str, events: AsyncIterator[str]) -> AsyncGenerator[str]:
    coming: asyncio.Task[str] | None = None
    try:
        yield first
        while True:
            coming = coming or asyncio.ensure_future(anext(events))
            done, _ = await asyncio.wait({coming}, timeout=_PING_EVERY_S)
            if not done:
                yield ": ping\n\n"
                continue
            come, coming = coming, None
            try:
                text = come.result()
            except StopAsyncIteration:
                return
            yield text
    finally:
        if coming is not None:
            coming.cancel()
            with suppress(asyncio.CancelledError, StopAsyncIteration):
                await coming
