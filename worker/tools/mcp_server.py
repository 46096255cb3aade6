"""MCP servers as tools: `<server>_<tool>` for each tool that a server lists."""

from __future__ import annotations

import json
import re
from typing import Any, Protocol

from mcp import MCPError
from mcp_types import (
    CallToolResult,
    ContentBlock,
    EmbeddedResource,
    ResourceLink,
    TextContent,
    TextResourceContents,
)
from mcp_types import Tool as ListedTool

from schemas.schema_safety import refuse_bad_schema
from schemas.tool import McpServer
from worker.tools import arguments as call_arguments
from worker.tools.base import ToolDefinition, ToolsUnavailable
from worker.tools.mcp_session import SessionLost
from worker.tools.secrets import Secret
from worker.tools.tool import ToolFailed

_NAME_MAX_CHARS = 64
_DESCRIPTION_MAX_CHARS = 4096


class Caller(Protocol):
    """Calls one of a server's tools by the server's own name for it."""

    async def call_tool(self, name: str, arguments: dict[str, Any]) -> CallToolResult:
        """Raise what the SDK raises, SessionLost or ToolsUnavailable."""
        ...


class McpTool:
    """One tool of an MCP server."""

    def __init__(self, listed: ListedTool, *, spec: McpServer, secret: Secret, caller: Caller) -> None:
        """Offer the tool; raises ToolsUnavailable for a schema that is not safe to validate with."""
        try:
            refuse_bad_schema(listed.input_schema, name="inputSchema")
        except ValueError as exc:
            raise ToolsUnavailable(
                f"the tool '{listed.name}' of the MCP server '{spec.name}' cannot be offered: {exc}; "
                "leave it out with `tools`",
                configuration=True,
            ) from exc
        self._name = listed.name
        self._secret = secret
        self._caller = caller
        self.definition = ToolDefinition(
            name=offered_name(spec.name, listed.name),
            description=(listed.description or "")[:_DESCRIPTION_MAX_CHARS],
            parameters=listed.input_schema,
        )
        self.timeout_s = spec.timeout_s

    def mask(self, text: str) -> str:
        """Return the text without the server's secret."""
        return self._secret.mask(text)

    async def call(self, arguments: dict[str, Any], *, key: str | None = None) -> str:  # noqa: ARG002 - it knows none
        """Call the tool; raises ToolFailed for an error of the tool, the server or the connection."""
        call_arguments.check(arguments, self.definition.parameters)
        try:
            result = await self._caller.call_tool(self._name, arguments)
        except (SessionLost, ToolsUnavailable) as exc:
            raise ToolFailed(str(exc)) from exc
        except (MCPError, RuntimeError, ValueError) as exc:
            # Also a result that does not keep to the protocol, or to the tool's own schema.
            raise ToolFailed(f"the MCP server failed: {exc}") from exc
        if result.is_error:
            raise ToolFailed(_text(result) or "the tool failed and did not say why")
        return _text(result)


def wanted(listed: list[ListedTool], spec: McpServer) -> list[ListedTool]:
    """Return the tools that the spec lets through; raises ToolsUnavailable for one that there is not."""
    if spec.tools is None:
        return listed
    by_name = {tool.name: tool for tool in listed}
    missing = [name for name in spec.tools if name not in by_name]
    if missing:
        raise ToolsUnavailable(
            f"the MCP server '{spec.name}' has no tool '{missing[0]}'; it has: {', '.join(sorted(by_name)) or 'none'}",
            configuration=True,
        )
    return [by_name[name] for name in dict.fromkeys(spec.tools)]


def offered_name(server: str, tool: str) -> str:
    """Return the name under which a model is offered a server's tool."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", f"{server}_{tool}")[:_NAME_MAX_CHARS]


def _text(result: CallToolResult) -> str:
    """Return the text of a result, else its structured content, which servers send as text as well."""
    text = "\n".join(_block_text(block) for block in result.content)
    if not text and result.structured_content is not None:
        return json.dumps(result.structured_content, ensure_ascii=False)
    return text


def _block_text(block: ContentBlock) -> str:
    match block:
        case TextContent(text=text):
            return text
        case EmbeddedResource(resource=TextResourceContents(text=text)):
            return text
        case ResourceLink(uri=uri):
            return str(uri)
        case _:
            return f"[{block.type}, which is no text]"
