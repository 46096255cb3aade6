"""Builds the application: routes, parts, and how errors become answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from producer.gateway.access import KeyFirst
from producer.gateway.bodies import Dialect, dialect_of, error_response
from producer.gateway.dialects import agent, langdock, langtail, openai, own
from producer.gateway.dialects.openai.batching.keeper import BatchKeeper
from producer.gateway.failures import SERVER_ERRORS, refusal, told_of
from producer.gateway.faults import faults_of, problem_of
from producer.gateway.http import observed
from producer.gateway.http.limits import BodyLimits
from producer.gateway.http.observed import Observed
from producer.gateway.parts import opened
from producer.gateway.problem import Fault, Kind, Problem
from schemas import names
from schemas.errors import AssistqError
from schemas.settings import Settings

_log = structlog.get_logger("assistq.gateway")

# Each answers for its own paths; Langtail's, which begin with a workspace's name, come last.
ROUTERS = (observed.router, *own.ROUTERS, *openai.ROUTERS, *agent.ROUTERS, *langdock.ROUTERS, *langtail.ROUTERS)


def create_app(settings: Settings) -> FastAPI:
    """Return the application; its parts are opened when it starts."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with opened(settings) as parts, parts.switchboard.listening(names.BATCHES_CHANNEL) as news:
            app.state.parts = parts
            async with BatchKeeper(parts.engine, parts.producer, parts.redis, news=news).running():
                yield

    app = FastAPI(title="assistq", version="1", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.registry = CollectorRegistry()
    # The last that is added is the first that a request meets.
    app.add_middleware(KeyFirst)
    app.add_middleware(
        BodyLimits,
        max_body_bytes=settings.http_max_body_bytes,
        max_upload_bytes=settings.http_max_upload_bytes,
        patience_s=settings.http_patience_s,
    )
    origins = [origin.strip() for origin in settings.http_cors_origins.split(",") if origin.strip()]
    if origins:
        app.add_middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])
    app.add_middleware(Observed, registry=app.state.registry)
    for router in ROUTERS:
        app.include_router(router)
    app.add_exception_handler(Problem, _on_problem)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    for kind in (AssistqError, *SERVER_ERRORS):
        app.add_exception_handler(kind, _on_refusal)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(Exception, _on_crash)
    return app


async def _on_problem(request: Request, error: Any) -> JSONResponse:
    response = error_response(dialect_of(request.url.path), error)
    request_id = getattr(request.state, "request_id", None)
    if request_id is not None:
        response.headers["x-request-id"] = request_id
    return response


async def _on_invalid(request: Request, error: Any) -> JSONResponse:
    dialect = dialect_of(request.url.path)
    return error_response(dialect, invalid(faults_of(error), dialect=dialect))


async def _on_refusal(request: Request, error: Exception) -> JSONResponse:
    _log.warning("request_refused", method=request.method, error=str(error))
    return error_response(dialect_of(request.url.path), refusal(error))


async def _on_http_exception(request: Request, error: Any) -> JSONResponse:
    # Starlette's own: no such path, no such method.
    kind = Kind(error.status_code) if error.status_code in {kind.value for kind in Kind} else Kind.BAD_REQUEST
    response = error_response(dialect_of(request.url.path), Problem(kind, str(error.detail)))
    # Such as `Allow`.
    response.headers.update(error.headers or {})
    return response


async def _on_crash(request: Request, error: Exception) -> JSONResponse:
    return error_response(dialect_of(request.url.path), told_of(error, method=request.method))


def invalid(faults: list[Fault], *, dialect: Dialect) -> Problem:
    """Return the problem of a request that breaks its schema: 422 in the agent dialect, 400 in all others."""
    kind = Kind.UNPROCESSABLE if dialect is Dialect.AGENT else Kind.BAD_REQUEST
    return problem_of(faults, kind=kind)
