"""One session with an MCP server, which the jobs of a process share."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

from mcp import Client, MCPError
from mcp_types import CONNECTION_CLOSED, INVALID_REQUEST

from worker.tools.base import ToolsUnavailable

# Longer than the SDK takes from closing a server's stdin to killing it.
CLOSE_TIMEOUT_S = 10.0
T = TypeVar("T")


class SessionLost(Exception):  # noqa: N818 - the name says what happened
    """The session ended before the server answered; whether it did what it was asked is unknown."""


class McpSession:
    """A session that a task of its own opens and closes: anyio's scopes are left by the task that entered them."""

    def __init__(self, connect: Callable[[], AbstractAsyncContextManager[Client]], *, name: str) -> None:
        """Begin to connect."""
        self._connect = connect
        self._name = name
        self._ready: asyncio.Future[Client] = asyncio.get_running_loop().create_future()
        self._closing = asyncio.Event()
        self._lost = False
        self._failure: Exception | None = None
        self._task = asyncio.create_task(self._own(), name=f"mcp {name}")

    @property
    def usable(self) -> bool:
        """Return whether the session is open, or opening, as far as is known."""
        return not (self._lost or self._closing.is_set() or self._task.done())

    async def use(self, what: Callable[[Client], Awaitable[T]]) -> T:
        """Do something with the client; raises SessionLost, or ToolsUnavailable if there never was a session."""
        await asyncio.wait({self._ready})
        client = self._ready.result()
        if not self.usable:
            raise SessionLost(str(self._failure or f"the session with the MCP server '{self._name}' has ended"))
        try:
            return await what(client)
        except MCPError as exc:
            if not _says_that_it_ended(exc):
                raise
            self._lost = True
            with contextlib.suppress(TimeoutError):  # what ended it tells more than that it ended
                await asyncio.wait_for(asyncio.shield(self._task), 0.1)
            raise SessionLost(str(self._failure or f"the MCP server '{self._name}' ended the session")) from exc

    async def close(self) -> None:
        """Close the session, and end a server that was started for it."""
        self._closing.set()
        if not self._ready.done():
            self._task.cancel()
        await asyncio.wait({self._task}, timeout=CLOSE_TIMEOUT_S)
        if not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=CLOSE_TIMEOUT_S)

    async def _own(self) -> None:
        try:
            async with self._connect() as client:
                self._ready.set_result(client)
                await self._closing.wait()
        except asyncio.CancelledError:
            self._give_up(ToolsUnavailable(f"the MCP server '{self._name}' was closed", configuration=False))
        except Exception as exc:  # noqa: BLE001 - it belongs to those who wait for the session
            self._give_up(exc)

    def _give_up(self, error: Exception) -> None:
        self._failure = error
        if not self._ready.done():
            self._ready.set_exception(error)
            # Perhaps nobody waits any more.
            self._ready.exception()


def _says_that_it_ended(error: MCPError) -> bool:
    # The second is what the SDK makes of a 404 for a session that the server does not know any more.
    return error.code == CONNECTION_CLOSED or (error.code, error.message) == (INVALID_REQUEST, "Session terminated")
