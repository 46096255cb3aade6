"""Makes the tools of an assistant ready for a job."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from importlib import import_module
from typing import TYPE_CHECKING, assert_never

import httpx2

from schemas.tool import ClientTool, HttpAction, McpServer, PythonTool, ToolSpec
from worker.errors import without_words
from worker.net.guard import AddressGuard, Resolve
from worker.tools.base import ToolDefinition, Tools, ToolsUnavailable
from worker.tools.calls import OnCrash, OpenedTools
from worker.tools.http_action import HttpTool, action_client
from worker.tools.python_functions import PythonFunctions
from worker.tools.secrets import Secrets
from worker.tools.tool import Tool

if TYPE_CHECKING:
    # Its SDK takes a second and 30 MB to import: only a process that meets an MCP server does.
    from worker.tools.mcp_servers import McpServers


class WorkerToolbox:
    """The toolbox of one process, bound to its event loop; close it when the last job has ended."""

    def __init__(
        self,
        *,
        environment: Mapping[str, str],
        allows_private: Callable[[str], bool],
        on_crash: OnCrash,
        functions: PythonFunctions | None = None,
        resolve: Resolve | None = None,
    ) -> None:
        """Take the parts.

        `environment` holds the secrets, as `ASSISTQ_SECRET_<NAME>`. `allows_private` tells
        whether a workspace's tools may reach addresses that are not on the public internet.
        """
        self._secrets = Secrets(environment)
        self._allows_private = allows_private
        self._on_crash = on_crash
        self._functions = functions or PythonFunctions()
        self._mcp: McpServers | None = None
        self._guards = {allow: AddressGuard(allow_private=allow, resolve=resolve) for allow in (False, True)}
        self._clients: dict[bool, httpx2.AsyncClient] = {}

    @asynccontextmanager
    async def open(self, specs: Sequence[ToolSpec], *, workspace: str, recorded: bool = True) -> AsyncIterator[Tools]:
        """Make them ready for one job; raises ToolsUnavailable."""
        offer = _Offer()
        async with AsyncExitStack() as stack:
            for spec in specs:
                await self._offer(offer, spec, workspace, stack)
            yield OpenedTools(
                definitions=offer.definitions,
                tools=offer.tools,
                callers=frozenset(offer.callers),
                on_crash=self._on_crash if recorded else self._on_crash_without_words,
            )

    def _on_crash_without_words(self, tool: str, error: Exception) -> None:
        self._on_crash(tool, without_words(error))

    async def aclose(self) -> None:
        """Close all connections, and end every server that was started."""
        if self._mcp is not None:
            await self._mcp.aclose()
        for client in self._clients.values():
            await client.aclose()

    async def _offer(self, offer: _Offer, spec: ToolSpec, workspace: str, stack: AsyncExitStack) -> None:
        private = self._allows_private(workspace)
        match spec:
            case HttpAction():
                secret = self._secrets.of(spec.name, spec.secret)
                offer.add(
                    HttpTool(spec, secret=secret, client=self._client(private=private)), by=f"HTTP action '{spec.name}'"
                )
            case PythonTool():
                offer.add(self._functions.tool(spec), by=f"Python tool '{spec.name}'")
            case McpServer():
                servers = await self._mcp_servers()
                lent = servers.lent(spec, workspace=workspace, guard=self._guards[private])
                for tool in await stack.enter_async_context(lent):
                    offer.add(tool, by=f"MCP server '{spec.name}'")
            case ClientTool():
                definition = ToolDefinition(spec.name, spec.description, dict(spec.parameters), spec.strict)
                offer.add_callers(definition, by=f"caller's tool '{spec.name}'")
            case _:
                assert_never(spec)

    async def _mcp_servers(self) -> McpServers:
        if self._mcp is None:
            await asyncio.to_thread(import_module, "worker.tools.mcp_servers")
        return self._made_mcp_servers()

    def _made_mcp_servers(self) -> McpServers:
        from worker.tools.mcp_servers import McpServers  # noqa: PLC0415 - see above

        if self._mcp is None:
            self._mcp = McpServers(self._secrets)
        return self._mcp

    def _client(self, *, private: bool) -> httpx2.AsyncClient:
        if private not in self._clients:
            self._clients[private] = action_client(self._guards[private])
        return self._clients[private]


class _Offer:
    """What a model is offered, each name once."""

    def __init__(self) -> None:
        self.definitions: list[ToolDefinition] = []
        self.tools: dict[str, Tool] = {}
        self.callers: set[str] = set()
        self._by: dict[str, str] = {}

    def add(self, tool: Tool, *, by: str) -> None:
        self._define(tool.definition, by)
        self.tools[tool.definition.name] = tool

    def add_callers(self, definition: ToolDefinition, *, by: str) -> None:
        self._define(definition, by)
        self.callers.add(definition.name)

    def _define(self, definition: ToolDefinition, by: str) -> None:
        name = definition.name
        if name in self._by:
            raise ToolsUnavailable(
                f"two tools are offered as '{name}', one by the {self._by[name]} and one by the {by}; rename one",
                configuration=True,
            )
        self._by[name] = by
        self.definitions.append(definition)
