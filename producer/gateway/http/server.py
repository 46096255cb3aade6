"""Serves the application over HTTP/1.1: uvicorn, with limits on how slowly requests come and answers are taken."""

from __future__ import annotations

import asyncio
import math
import resource
import socket
from typing import cast

import structlog
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from producer.gateway.parts import Parts
from schemas.settings import Settings

# No client of ours sends more; llhttp itself knows no bound.
HEADERS_MAX_BYTES = 64 * 1024
_KEEP_ALIVE_S = 65
_BACKLOG = 4096
_ANSWER_WITHIN_S = 5

_log = structlog.get_logger("assistq.gateway")


class PatientForSoLong(HttpToolsProtocol):
    """Closes a connection whose headers do not come to an end, or grow without one, or whose client takes nothing.

    The last is TCP's to see: whether what was sent is acknowledged, and room made for what was not. Only Linux bounds
    it; elsewhere a client that is there and never reads stays until it leaves.
    """

    patience_s: float
    stalled_s: float

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Give the first request its time, and each answer."""
        super().connection_made(transport)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            connection = transport.get_extra_info("socket")
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, math.ceil(self.stalled_s * 1000))
        self._is_in_a_request = False
        self._header_bytes = 0
        self._headers_due: asyncio.TimerHandle | None = None
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the time limit."""
        self._headers_have_come()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what belongs to headers; each later request has its time from its first byte on."""
        if self._headers_due is None and not self._is_in_a_request:
            self._expect_headers()
        waiting = self._headers_due is not None
        super().data_received(data)
        if waiting and self._headers_due is not None:
            self._header_bytes += len(data)
            if self._header_bytes > HEADERS_MAX_BYTES:
                self._give_up()

    def on_headers_complete(self) -> None:
        """Go on without a time limit; that of the body is the application's (limits.py)."""
        self._headers_have_come()
        self._is_in_a_request = True
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """Wait for the next request; uvicorn bounds how long (keep-alive)."""
        self._is_in_a_request = False
        super().on_response_complete()

    def _expect_headers(self) -> None:
        self._header_bytes = 0
        self._headers_due = self.loop.call_later(self.patience_s, self._give_up)

    def _headers_have_come(self) -> None:
        if self._headers_due is not None:
            self._headers_due.cancel()
            self._headers_due = None

    def _give_up(self) -> None:
        self._headers_have_come()
        if not self.transport.is_closing():
            self.transport.close()


class Server(uvicorn.Server):
    """Tells where it listens once it does: port 0 is any that is free."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and tell."""
        await super().startup(sockets)
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            _log.info("gateway_listening", url=f"http://{shown}:{port}")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more requests, and give those that wait for a job the grace that they have."""
        parts = cast("Parts", cast("FastAPI", self.config.app).state.parts)
        cut_off = asyncio.get_running_loop().call_later(parts.settings.shutdown_grace_s, parts.calls.shut)
        await super().shutdown(sockets)
        cut_off.cancel()


def serve(app: FastAPI, settings: Settings) -> bool:
    """Serve until SIGTERM or SIGINT; return whether it ever listened. Calls in flight have shutdown_grace_s."""
    _allow_many_connections()
    config = uvicorn.Config(
        app,
        host=settings.http_host,
        port=settings.http_port,
        http=type("Protocol", (PatientForSoLong,), _bounds(settings)),
        ws="none",
        backlog=_BACKLOG,
        access_log=False,
        server_header=False,
        # Ours are set already (schemas/logs.py).
        log_config=None,
        log_level="warning",
        timeout_keep_alive=_KEEP_ALIVE_S,
        # Who waits is answered at the end of the grace (Calls.shut), within this.
        timeout_graceful_shutdown=math.ceil(settings.shutdown_grace_s) + _ANSWER_WITHIN_S,
    )
    server = Server(config)
    server.run()
    return server.started


def _bounds(settings: Settings) -> dict[str, float]:
    return {"patience_s": settings.http_patience_s, "stalled_s": settings.http_stalled_s}


def _allow_many_connections() -> None:
    """A stream that waits is a socket, and there may be tens of thousands of them."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
