"""Who calls, and what they may do: the key first, before anything of a request's body is read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, cast

from fastapi import Request, Security
from fastapi.security import APIKeyHeader, HTTPBearer
from sqlalchemy.exc import SQLAlchemyError
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as Connection

from producer.gateway.bodies import dialect_of, error_response
from producer.gateway.keys import Scope
from producer.gateway.parts import parts_of
from producer.gateway.problem import Kind, Problem
from schemas.assistant import workspace_of

# What answers without a key; nothing in there is of any workspace.
PUBLIC_PATHS = frozenset({"/healthz", "/readyz", "/openapi.json", "/metrics"})

# For the OpenAPI document; what was sent is looked at in KeyFirst.
_BEARER = HTTPBearer(auto_error=False, description="A key of `assistq keys create`")
_HEADER = APIKeyHeader(name="X-API-Key", auto_error=False, description="The same, as Langtail's clients send it")


@dataclass(frozen=True, slots=True)
class Caller:
    """A key that was checked; `assistants` are those that are shared with it, None all of its workspace."""

    key_id: str
    workspace: str
    scopes: frozenset[str]
    assistants: frozenset[str] | None
    rpm: int | None

    def sees(self, address: str) -> bool:
        """Return whether the assistant is of the caller's workspace: of others it knows nothing."""
        return workspace_of(address) == self.workspace

    def may_use(self, address: str) -> bool:
        """Return whether the assistant is shared with the key."""
        return self.sees(address) and (self.assistants is None or address in self.assistants)


def caller(scope: Scope) -> Callable[..., Awaitable[Caller]]:
    """Return the dependency of a route that needs this scope; Problem 403."""

    async def check(
        request: Request, _bearer: Annotated[Any, Security(_BEARER)], _header: Annotated[Any, Security(_HEADER)]
    ) -> Caller:
        found = cast("Caller", request.state.caller)
        if scope not in found.scopes:
            raise Problem(Kind.FORBIDDEN, f"the key lacks the scope '{scope}'", code="missing_scope")
        return found

    return check


class KeyFirst:
    """Lets a request in only with a good key that has requests left, unless its path is public.

    In front of the routes, for these read the body first, which may be large, and then look at who sent it.
    """

    def __init__(self, app: ASGIApp) -> None:
        """Stand in front of this."""
        self._app = app

    async def __call__(self, connection: Connection, receive: Receive, send: Send) -> None:
        """Answer 401, 429 or 503 in the form of the path's dialect, or pass the request on with its Caller."""
        if connection["type"] == "http" and connection["path"] not in PUBLIC_PATHS:
            request = Request(connection)
            try:
                request.state.caller = await _caller_of(request)
            except Problem as problem:
                await error_response(dialect_of(connection["path"]), problem)(connection, receive, send)
                return
        await self._app(connection, receive, send)


async def _caller_of(request: Request) -> Caller:
    text = _key_sent(request)
    if text is None:
        raise Problem(
            Kind.UNAUTHORIZED,
            "no API key; send `Authorization: Bearer KEY` or `X-API-Key: KEY`",
            code="missing_api_key",
        )
    parts = parts_of(request)
    try:
        key = await parts.checked_keys.find(text)
    except SQLAlchemyError as exc:
        raise Problem(
            Kind.UNAVAILABLE,
            "the database, which has the keys, does not answer; try again",
            code="database_unavailable",
            retry_after_s=1,
        ) from exc
    if key is None:
        raise Problem(
            Kind.UNAUTHORIZED,
            "the API key is not valid; `assistq keys list` shows those that are",
            code="invalid_api_key",
        )
    if key.rpm is not None:
        await parts.request_limit.take(key.id, key.rpm)
    return Caller(
        key_id=key.id,
        workspace=key.workspace,
        scopes=frozenset(key.scopes),
        assistants=None if key.assistants is None else frozenset(key.assistants),
        rpm=key.rpm,
    )


def _key_sent(request: Request) -> str | None:
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and token.strip():
        return token.strip()
    return request.headers.get("x-api-key") or None
