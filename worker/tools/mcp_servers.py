"""The MCP servers of a process: each opened when a job first needs it, shared, and closed when idle."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from mcp import Client, MCPError
from mcp_types import CallToolResult, ListToolsResult
from mcp_types import Tool as ListedTool

from schemas.tool import McpServer
from worker.net.guard import AddressGuard
from worker.tools.base import ToolsUnavailable
from worker.tools.mcp_connect import connect
from worker.tools.mcp_server import McpTool, wanted
from worker.tools.mcp_session import McpSession, SessionLost
from worker.tools.secrets import Secrets

# To start a server, to agree with it on a protocol and to list its tools.
OPEN_TIMEOUT_S = 30.0
# A job that opens a server uses a listing that is not older.
LISTING_FRESH_S = 30.0
# A server that no job has used for so long is closed.
IDLE_S = 60.0
_PAGES_MAX = 100


class McpServers:
    """Lends the tools of MCP servers to jobs; bound to one event loop."""

    def __init__(self, secrets: Secrets) -> None:
        """Start nothing yet."""
        self._secrets = secrets
        self._servers: dict[tuple[str, str], _Server] = {}
        self._closings: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def lent(self, spec: McpServer, *, workspace: str, guard: AddressGuard) -> AsyncIterator[list[McpTool]]:
        """Lend the server's tools; raises ToolsUnavailable.

        Workspaces share no session: a server may keep state in it.
        """
        secret = self._secrets.of(spec.name, spec.secret)
        key = (workspace, spec.model_dump_json())
        server = self._servers.get(key)
        if server is None:
            server = _Server(lambda: connect(spec, secret=secret, guard=guard), name=spec.name)
            self._servers[key] = server
        server.users += 1
        server.keep()
        try:
            listed = wanted(await server.listing(), spec)
            yield [McpTool(each, spec=spec, secret=secret, caller=server) for each in listed]
        finally:
            server.users -= 1
            if not server.users:
                server.leave_after(IDLE_S, lambda: self._close(key))

    async def aclose(self) -> None:
        """Close every session, and end every server that was started."""
        for key in list(self._servers):
            self._close(key)
        if self._closings:
            await asyncio.wait(self._closings)

    def _close(self, key: tuple[str, str]) -> None:
        server = self._servers.pop(key, None)
        if server is not None:
            server.keep()
            closing = asyncio.create_task(server.close())
            self._closings.add(closing)
            closing.add_done_callback(self._closings.discard)


class _Server:
    """One server: its session, replaced when it was lost, and what it listed last."""

    def __init__(self, connect_: Callable[[], AbstractAsyncContextManager[Client]], *, name: str) -> None:
        self.users = 0
        self._connect = connect_
        self._name = name
        self._session: McpSession | None = None
        self._listed: list[ListedTool] = []
        self._listed_at_s: float | None = None
        self._failure: ToolsUnavailable | None = None
        self._failed_at_s = 0.0
        self._one_at_a_time = asyncio.Lock()
        self._idle: asyncio.TimerHandle | None = None

    def keep(self) -> None:
        """Do not close it for being idle."""
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def leave_after(self, seconds: float, close: Callable[[], None]) -> None:
        """Close it if nobody has come for it by then."""
        self._idle = asyncio.get_running_loop().call_later(seconds, close)

    async def listing(self) -> list[ListedTool]:
        """Return what the server lists, from a session that was open a moment ago; raises ToolsUnavailable."""
        asked_at_s = time.monotonic()
        async with self._one_at_a_time:
            if self._is_fresh():
                return self._listed
            if self._failure is not None and self._failed_at_s >= asked_at_s:
                # Those who waited for this try do not each wait for one of their own.
                raise ToolsUnavailable(str(self._failure), configuration=self._failure.configuration)
            try:
                self._listed = await self._listed_in_time()
            except ToolsUnavailable as exc:
                self._failure, self._failed_at_s = exc, time.monotonic()
                await self._drop()
                raise
            self._failure, self._listed_at_s = None, time.monotonic()
            return self._listed

    async def call_tool(self, name: str, arguments: dict[str, Any]) -> CallToolResult:
        """Call a tool once: one whose answer was lost may have run."""
        session = self._session
        if session is None or not session.usable:
            async with self._one_at_a_time:
                session = await self._usable()
        return await session.use(lambda client: client.call_tool(name, arguments))

    async def close(self) -> None:
        """Close the session, if there is one."""
        async with self._one_at_a_time:
            await self._drop()

    async def _listed_in_time(self) -> list[ListedTool]:
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                return await self._list()
        except TimeoutError as exc:
            raise self._unavailable(f"it did not answer within {OPEN_TIMEOUT_S:g} s") from exc
        except (SessionLost, MCPError, ValueError) as exc:
            raise self._unavailable(str(exc)) from exc

    async def _list(self) -> list[ListedTool]:
        """List the tools; a session that was lost since it was last used is replaced once."""
        session = await self._usable()
        try:
            return await session.use(_all_tools)
        except SessionLost:
            return await (await self._usable()).use(_all_tools)

    async def _usable(self) -> McpSession:
        if self._session is None or not self._session.usable:
            await self._drop()
            self._session = McpSession(self._connect, name=self._name)
        return self._session

    async def _drop(self) -> None:
        session, self._session, self._listed_at_s = self._session, None, None
        if session is not None:
            await session.close()

    def _is_fresh(self) -> bool:
        return (
            self._session is not None
            and self._session.usable
            and self._listed_at_s is not None
            and time.monotonic() - self._listed_at_s < LISTING_FRESH_S
        )

    def _unavailable(self, why: str) -> ToolsUnavailable:
        return ToolsUnavailable(f"the MCP server '{self._name}' cannot be used: {why}", configuration=False)


async def _all_tools(client: Client) -> list[ListedTool]:
    listed: list[ListedTool] = []
    cursor: str | None = None
    for _ in range(_PAGES_MAX):
        page: ListToolsResult = await client.list_tools(cursor=cursor)
        listed += page.tools
        cursor = page.next_cursor
        if cursor is None:
            break
    return listed
