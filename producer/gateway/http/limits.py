"""How large a request may be, and how slowly its body may come: an ASGI layer around the application."""

from __future__ import annotations

import asyncio
import re
import time

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from producer.gateway.bodies import dialect_of, error_response
from producer.gateway.problem import Kind, Problem

# Once a body has taken longer than its sender may pause, it has to have come this fast: nobody is slower.
BYTES_PER_S_AT_LEAST = 1024

# Where files come in. All else is JSON.
_UPLOADS = re.compile(r"/v1/files|/attachment/v1/upload|/v1/job-batches")


class BodyLimits:
    """Answers for the application where a body is too large (413) or too slow (408)."""

    def __init__(self, app: ASGIApp, *, max_body_bytes: int, max_upload_bytes: int, patience_s: float) -> None:
        """Wrap the application; `patience_s` is how long a sender may pause."""
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._max_upload_bytes = max_upload_bytes
        self._patience_s = patience_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._max_upload_bytes if _UPLOADS.match(scope["path"]) else self._max_body_bytes
        body = _Body(receive, send, limit_bytes=limit, patience_s=self._patience_s)
        if _told_length(scope) > limit:
            body.problem = _too_large(limit)
        else:
            try:
                await self._app(scope, body.receive, body.send)
            except ClientDisconnect:
                # What the body's reader is told once we gave up on it, and when the client has gone.
                if body.problem is None:
                    return
        if body.problem is not None and not body.answered:
            answer = error_response(dialect_of(scope["path"]), body.problem)
            # The rest of the body is not read.
            answer.headers["connection"] = "close"
            await answer(scope, receive, send)


class _Body:
    """One request's body; once there is a `problem` the application has nothing more to say."""

    def __init__(self, receive: Receive, send: Send, *, limit_bytes: int, patience_s: float) -> None:
        self.problem: Problem | None = None
        self.answered = False
        self._receive = receive
        self._send = send
        self._limit_bytes = limit_bytes
        self._patience_s = patience_s
        self._began_s = time.monotonic()
        self._bytes = 0
        self._whole = False

    async def receive(self) -> Message:
        if self._whole:
            return await self._receive()
        if self.problem is not None:
            return {"type": "http.disconnect"}
        try:
            async with asyncio.timeout(self._patience_s):
                message = await self._receive()
        except TimeoutError:
            return self._refuse(_too_slow())
        if message["type"] != "http.request":
            return message
        self._bytes += len(message.get("body", b""))
        self._whole = not message.get("more_body", False)
        if self._bytes > self._limit_bytes:
            return self._refuse(_too_large(self._limit_bytes))
        slow_s = time.monotonic() - self._began_s - self._patience_s
        if not self._whole and slow_s > 0 and self._bytes < BYTES_PER_S_AT_LEAST * slow_s:
            return self._refuse(_too_slow())
        return message

    async def send(self, message: Message) -> None:
        if self.problem is not None and not self.answered:
            return
        self.answered = True
        await self._send(message)

    def _refuse(self, problem: Problem) -> Message:
        self.problem = problem
        return {"type": "http.disconnect"}


def _told_length(scope: Scope) -> int:
    told = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
    return int(told) if told.isdigit() else 0


def _too_large(limit_bytes: int) -> Problem:
    return Problem(
        Kind.TOO_LARGE,
        f"the body is larger than {limit_bytes:,} bytes; send less, or several requests",
        code="body_too_large",
    )


def _too_slow() -> Problem:
    return Problem(Kind.BODY_TIMED_OUT, "the body came too slowly; send the request again", code="body_too_slow")
