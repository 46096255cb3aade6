"""Connects to MCP servers through the official SDK: over stdio, or streamable HTTP."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import httpx2
from mcp import Client, StdioServerParameters
from mcp.client.stdio import get_default_environment, stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import Implementation

from schemas.tool import McpServer
from worker.net.guard import AddressGuard
from worker.net.guarded_transport import ConnectionRefusedByGuard, GuardedTransport
from worker.tools import leash
from worker.tools.base import ToolsUnavailable
from worker.tools.http_request import headers, rendered
from worker.tools.last_words import listening
from worker.tools.secrets import Secret
from worker.tools.tool import ToolFailed

CONNECT_TIMEOUT_S = 10.0
# The call's own limit comes first: it takes back the call, and this would end the session.
_READ_SPARE_S = 30.0
_MENDED_BY_A_PERSON = {400, 401, 403, 404, 405}
_US = Implementation(name="assistq", version="1")


def connect(spec: McpServer, *, secret: Secret, guard: AddressGuard) -> AbstractAsyncContextManager[Client]:
    """Return a session, to be entered and left by one and the same task; a failure of it is ToolsUnavailable."""
    return _over_http(spec, spec.url, secret, guard) if spec.url else _over_stdio(spec, spec.command or (), secret)


@asynccontextmanager
async def _over_stdio(spec: McpServer, command: tuple[str, ...], secret: Secret) -> AsyncIterator[Client]:
    environment = _environment(spec, secret)
    # Of our own variables the SDK passes on HOME, LOGNAME, PATH, SHELL, TERM and USER.
    path = {**get_default_environment(), **environment}.get("PATH")
    if shutil.which(command[0], path=path) is None:
        raise _unavailable(spec, f"there is no command '{command[0]}' on the worker", configuration=True)
    parameters = StdioServerParameters(
        command=sys.executable,
        args=["-I", str(Path(leash.__file__)), str(os.getpid()), "--", *command],
        env=environment,
    )
    async with listening() as (words, stderr):
        try:
            async with Client(stdio_client(parameters, errlog=stderr), cache=None, client_info=_US) as client:
                stderr.close()
                yield client
        except Exception as exc:
            stderr.close()
            said = await words.line()
            told = secret.mask(f"{_first_cause(exc)}{f'; it said: {said}' if said else ''}")
            raise _unavailable(spec, told, configuration=False) from exc


@asynccontextmanager
async def _over_http(spec: McpServer, url: str, secret: Secret, guard: AddressGuard) -> AsyncIterator[Client]:
    statuses: list[int] = []

    async def note(response: httpx2.Response) -> None:
        statuses[:] = [response.status_code]

    http = httpx2.AsyncClient(
        # The SDK follows redirects within the origin only: one host, so connections may be kept.
        transport=GuardedTransport(guard, limits=httpx2.Limits()),
        headers=_headers(spec, secret),
        timeout=httpx2.Timeout(spec.timeout_s + _READ_SPARE_S, connect=CONNECT_TIMEOUT_S),
        event_hooks={"response": [note]},
        trust_env=False,
    )
    try:
        async with http, Client(streamable_http_client(url, http_client=http), cache=None, client_info=_US) as client:
            yield client
    except Exception as exc:
        cause = _first_cause(exc)
        status = statuses[0] if statuses and statuses[0] >= 400 else None
        told = secret.mask(f"HTTP {status}" if status else str(cause) or type(cause).__name__)
        for_a_person = status in _MENDED_BY_A_PERSON or isinstance(cause, ConnectionRefusedByGuard)
        raise _unavailable(spec, told, configuration=for_a_person) from exc


def _environment(spec: McpServer, secret: Secret) -> dict[str, str]:
    if spec.secret is None:
        return dict(spec.env)
    return {name: rendered(value, secret.variables) for name, value in spec.env.items()}


def _headers(spec: McpServer, secret: Secret) -> tuple[tuple[bytes, bytes], ...]:
    try:
        return headers(spec.headers, secret.variables)
    except ToolFailed as exc:
        raise _unavailable(spec, str(exc), configuration=True) from exc


def _unavailable(spec: McpServer, why: str, *, configuration: bool) -> ToolsUnavailable:
    return ToolsUnavailable(f"the MCP server '{spec.name}' cannot be used: {why}", configuration=configuration)


def _first_cause(error: BaseException) -> BaseException:
    """Return the first error of a task group's group of them."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
