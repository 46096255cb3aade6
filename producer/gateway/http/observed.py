"""What the gateway did: a log line and metrics for each request, and the health of its parts."""

from __future__ import annotations

import time

import structlog
from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from producer.gateway.bodies import dialect_of
from producer.gateway.parts import parts_of
from producer.gateway.problem import Kind, Problem
from schemas.names import METRIC_PREFIX

_log = structlog.get_logger("assistq.gateway")
_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
# A probe each second is no news.
_UNTOLD = ("/healthz", "/readyz", "/metrics")

# Some that look after health send HEAD.
_READ = ["GET", "HEAD"]
router = APIRouter(include_in_schema=False)


class Observed:
    """An ASGI layer that counts, times and logs requests. A stream lasts until its end."""

    def __init__(self, app: ASGIApp, *, registry: CollectorRegistry) -> None:
        """Wrap the application; metrics go to the registry."""
        self._app = app
        self._requests = Counter(
            f"{METRIC_PREFIX}_http_requests", "HTTP requests, by status.", ("dialect", "status"), registry=registry
        )
        self._seconds = Histogram(
            f"{METRIC_PREFIX}_http_request_seconds",
            "From the request to the end of its answer.",
            ("dialect",),
            buckets=_BUCKETS_S,
            registry=registry,
        )
        self._open = Gauge(
            f"{METRIC_PREFIX}_http_open_requests", "HTTP requests whose answer has not ended.", registry=registry
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["path"] in _UNTOLD:
            await self._app(scope, receive, send)
            return
        began_s = time.monotonic()
        # What nginx writes where the client went before it was answered.
        status = 499

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._open.inc()
        try:
            await self._app(scope, receive, note)
        finally:
            self._open.dec()
            self._tell(scope, status, time.monotonic() - began_s)

    def _tell(self, scope: Scope, status: int, duration_s: float) -> None:
        dialect = dialect_of(scope["path"])
        self._requests.labels(dialect, str(status)).inc()
        self._seconds.labels(dialect).observe(duration_s)
        route = scope.get("route")
        _log.info(
            "request",
            method=scope["method"],
            # Not the path, in which a caller may have written anything.
            route=getattr(route, "path", None),
            status=status,
            duration_s=round(duration_s, 4),
            key=getattr(scope.get("state", {}).get("caller"), "key_id", None),
        )


@router.api_route("/healthz", methods=_READ)
async def is_alive() -> dict[str, str]:
    """Say that this process answers."""
    return {"status": "ok"}


@router.api_route("/readyz", methods=_READ)
async def is_ready(request: Request) -> dict[str, str]:
    """Say whether the queue and the database answer; 503 if not."""
    parts = parts_of(request)
    for what, check in (("queue", parts.queue_answers), ("database", parts.database_answers)):
        if not await check():
            raise Problem(Kind.UNAVAILABLE, f"the {what} does not answer", code=f"{what}_unavailable")
    return {"status": "ok"}


@router.api_route("/metrics", methods=_READ)
async def metrics(request: Request) -> Response:
    """Return the metrics of this process; those of jobs are the workers'."""
    return Response(generate_latest(request.app.state.registry), media_type=CONTENT_TYPE_LATEST)
