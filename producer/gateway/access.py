"""Who calls, and what they may do: the key first, before anything of a request's body is read.

A key sees its workspace alone; of others it knows nothing, not even that they are there. One that only some
assistants are shared with (`Caller.assistants`) is narrower, on every route of every dialect:

- It runs, shows and changes these assistants. Another of the workspace is refused: 404 where the vendor's API
  says no more, else 403 `assistant_not_shared`.
- It runs what names no stored assistant (a plain model, a job's `inline`, Langdock's temporary assistant, lines of a
  batch) only if `WORKSPACE/inline/inline`, the address of all these, is shared with it: else 403.
- It sees a job of a shared assistant, and a batch whose jobs are all of such.
- It sees a thread that jobs of shared assistants stand in, and no other's; one without jobs if a key began it whose
  assistants are all shared with it. It neither reads, changes, nor goes on with any other: 404.
  What comes between that look and its job is seen where the job begins (JobRecord.within): `thread_unknown`.
- It sees a file, an attachment and a batch of OpenAI's that a key made whose assistants are all shared with it: else
  404. A stored assistant's own attachments go with the assistant.
- An assistant that it makes is shared with it.

Not narrower are, for the scope `webhooks`, deliveries and endpoints: they are the workspace's.
Whatever its scopes, no key brings what runs code on a worker or reaches its secrets (tools.py), or an assistant that
a service hosts for the operator (hosted.py). `sharing.py` has this as conditions over tables.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, cast

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyHeader, HTTPBearer
from sqlalchemy.exc import SQLAlchemyError
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as Connection

from producer.gateway.bodies import dialect_of, error_response
from producer.gateway.keys import Scope
from producer.gateway.parts import parts_of
from producer.gateway.problem import Kind, Problem
from schemas.assistant import INLINE_PATH, workspace_of

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

    @property
    def may_run_inline(self) -> bool:
        """Return whether the key runs what names no stored assistant."""
        return self.may_use(self.workspace + INLINE_PATH)

    @property
    def made_with(self) -> list[str] | None:
        """Return what is kept with a thing that the key makes, for `sharing.within`."""
        return None if self.assistants is None else sorted(self.assistants)


def refuse_unshared(address: str, caller: Caller) -> None:
    """Raise Problem 403 if this assistant of the workspace is not shared with the key."""
    if not caller.may_use(address):
        raise Problem(
            Kind.FORBIDDEN,
            f"assistant {address} is not shared with the key; `assistq keys share` does it",
            code="assistant_not_shared",
        )


def refuse_inline(caller: Caller) -> None:
    """Raise Problem 403 if the key may not run what names no stored assistant."""
    refuse_unshared(caller.workspace + INLINE_PATH, caller)


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


# For a handler's signature: a key that has the scope.
Runs = Annotated[Caller, Depends(caller(Scope.RUN))]
Reads = Annotated[Caller, Depends(caller(Scope.READ))]
WritesAssistants = Annotated[Caller, Depends(caller(Scope.ASSISTANTS))]
ManagesWebhooks = Annotated[Caller, Depends(caller(Scope.WEBHOOKS))]


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
