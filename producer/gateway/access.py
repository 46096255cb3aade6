"""Who calls, and what they may do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fastapi import Request

from producer.gateway.keys import Scope
from producer.gateway.parts import parts_of
from producer.gateway.problem import Kind, Problem
from schemas.assistant import workspace_of


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


def caller(scope: Scope) -> Callable[[Request], Awaitable[Caller]]:
    """Return the dependency of a route that needs this scope; Problem 401 or 403."""

    async def check(request: Request) -> Caller:
        found = await _caller_of(request)
        if scope not in found.scopes:
            raise Problem(Kind.FORBIDDEN, f"the key lacks the scope '{scope}'", code="missing_scope")
        return found

    return check


async def _caller_of(request: Request) -> Caller:
    text = _key_sent(request)
    if text is None:
        raise Problem(
            Kind.UNAUTHORIZED,
            "no API key; send `Authorization: Bearer KEY` or `X-API-Key: KEY`",
            code="missing_api_key",
        )
    parts = parts_of(request)
    key = await parts.in_thread(parts.keys.find, text)
    if key is None:
        raise Problem(
            Kind.UNAUTHORIZED,
            "the API key is not valid; `assistq keys list` shows those that are",
            code="invalid_api_key",
        )
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
