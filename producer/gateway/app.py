"""Builds the application: routes, parts, and how errors become answers."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from producer.gateway.bodies import Dialect, dialect_of, error_response
from producer.gateway.dialects import langtail, langtail_threads, openai_chat
from producer.gateway.parts import opened
from producer.gateway.problem import Fault, Kind, Problem
from schemas.settings import Settings

log = logging.getLogger(__name__)

# Each answers for its own paths; Langtail's, which begin with a workspace's name, come last.
ROUTERS = (openai_chat.router, langtail_threads.router, langtail.router)


def create_app(settings: Settings) -> FastAPI:
    """Return the application; its parts are opened when it starts."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with opened(settings) as parts:
            app.state.parts = parts
            yield

    app = FastAPI(title="assistq", version="1", lifespan=lifespan, docs_url=None, redoc_url=None)
    for router in ROUTERS:
        app.include_router(router)
    app.add_exception_handler(Problem, _on_problem)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(Exception, _on_crash)
    return app


async def _on_problem(request: Request, error: Any) -> JSONResponse:
    return error_response(dialect_of(request.url.path), error)


async def _on_invalid(request: Request, error: Any) -> JSONResponse:
    faults = [Fault(where=tuple(e["loc"]), what=e["msg"], type=e["type"]) for e in error.errors()]
    return error_response(dialect_of(request.url.path), invalid(faults, dialect=dialect_of(request.url.path)))


async def _on_http_exception(request: Request, error: Any) -> JSONResponse:
    # Starlette's own: no such path, no such method.
    kind = Kind(error.status_code) if error.status_code in {kind.value for kind in Kind} else Kind.BAD_REQUEST
    return error_response(dialect_of(request.url.path), Problem(kind, str(error.detail)))


async def _on_crash(request: Request, error: Exception) -> JSONResponse:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    problem = Problem(Kind.INTERNAL, "the gateway failed on this request; its log says why")
    return error_response(dialect_of(request.url.path), problem)


def invalid(faults: list[Fault], *, dialect: Dialect) -> Problem:
    """Return the problem of a request that breaks its schema: 422 in the agent dialect, 400 in all others."""
    kind = Kind.UNPROCESSABLE if dialect is Dialect.AGENT else Kind.BAD_REQUEST
    first = faults[0]
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    message = f"{first.place}: {first.what}{more}" if first.place else f"{first.what}{more}"
    return Problem(kind, message, code="invalid_request", param=first.place or None, faults=faults)
