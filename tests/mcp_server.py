"""A real MCP server for tests: over stdio if this file is run, over streamable HTTP as a context manager."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from mcp.server.mcpserver import MCPServer
from mcp_types import ImageContent

DEADLINE_S = 10.0


def server() -> MCPServer:
    """Return a server with tools of every behaviour."""
    mcp = MCPServer("for tests")
    waiting: list[asyncio.Event] = []

    @mcp.tool()
    def echo(text: str) -> str:
        """Say it again."""
        return text

    @mcp.tool()
    def fail() -> str:
        """Fail."""
        raise ValueError("broken")

    @mcp.tool()
    async def hang() -> str:
        """Never answer."""
        await asyncio.Event().wait()
        return "late"

    @mcp.tool()
    async def meet() -> str:
        """Answer when two are here."""
        if waiting:
            waiting.pop().set()
        else:
            mine = asyncio.Event()
            waiting.append(mine)
            await asyncio.wait_for(mine.wait(), DEADLINE_S)
        return "met"

    @mcp.tool()
    def die() -> str:
        """End the server in the middle of a call."""
        os._exit(3)

    @mcp.tool()
    def pid() -> str:
        """Tell which process this is."""
        return str(os.getpid())

    @mcp.tool()
    def environment() -> dict[str, str]:
        """Tell the whole environment."""
        return dict(os.environ)

    @mcp.tool(structured_output=False)
    def picture() -> ImageContent:
        """Return no text."""
        return ImageContent(type="image", data="aGk=", mime_type="image/png")

    @mcp.tool(name="dotted.name")
    def dotted() -> str:
        """Have a name that no model may be offered."""
        return "dotted"

    return mcp


def command(*arguments: str) -> tuple[str, ...]:
    """Return the command that runs this server over stdio."""
    return (sys.executable, str(Path(__file__)), *arguments)


class Served:
    """A server over HTTP: where it is, and the headers of each request that it got."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.headers: list[dict[str, str]] = []


@contextmanager
def over_http(*, port: int = 0, key: str | None = None) -> Iterator[Served]:
    """Serve on loopback; with a `key`, only requests that carry it as `X-Key`."""
    listening = socket.create_server(("127.0.0.1", port))
    served = Served(f"http://127.0.0.1:{listening.getsockname()[1]}/mcp")
    app = server().streamable_http_app()

    async def checked(scope: Any, receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        if scope["type"] == "http":
            headers = {name.decode(): value.decode() for name, value in scope["headers"]}
            served.headers.append(headers)
            if key is not None and headers.get("x-key") != key:
                await send({"type": "http.response.start", "status": 401, "headers": []})
                await send({"type": "http.response.body", "body": b""})
                return
        await app(scope, receive, send)

    runner = uvicorn.Server(
        uvicorn.Config(checked, log_config=None, timeout_graceful_shutdown=1, ws="none", lifespan="on")
    )
    thread = threading.Thread(target=runner.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield served
    finally:
        runner.should_exit = True
        thread.join(DEADLINE_S)
        listening.close()


if __name__ == "__main__":
    if "--deaf" in sys.argv:
        # A server that does not end when its stdin does.
        answering = threading.Thread(target=server().run, daemon=True)
        answering.start()
        signal.pause()
    server().run()
