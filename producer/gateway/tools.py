"""Which tools a caller of the gateway may bring: none that runs code on a worker, or reaches its secrets."""

from __future__ import annotations

from collections.abc import Iterable

from producer.gateway.problem import Kind, Problem
from schemas.tool import ClientTool, HttpAction, McpServer, PythonTool, ToolSpec

# OpenAI's own limit.
TOOLS_MAX = 128


def checked_tools(tools: Iterable[ToolSpec]) -> tuple[ToolSpec, ...]:
    """Return the tools as they are; Problem 403 for one that only an assistant file may have, 400 for a bad list.

    Who holds a key writes a conversation. Who writes an assistant file has the worker's machine in hand:
    `python` and `mcp` run programs there, and `secret` sends a value of its environment to any URL.
    """
    checked: list[ToolSpec] = []
    names: set[str] = set()
    for tool in tools:
        if len(checked) == TOOLS_MAX:
            raise Problem(Kind.BAD_REQUEST, f"tools: more than {TOOLS_MAX}", code="too_many_tools", param="tools")
        if tool.name in names:
            raise Problem(
                Kind.BAD_REQUEST,
                f"tools: two are called '{tool.name}'; give each a name of its own",
                code="duplicate_tool",
                param="tools",
            )
        names.add(tool.name)
        match tool:
            case HttpAction(secret=str()):
                raise _forbidden(tool.name, "a secret of the worker may not be named over HTTP")
            case PythonTool() | McpServer():
                raise _forbidden(tool.name, f"type {tool.type} runs a program on the worker")
            case HttpAction() | ClientTool():
                checked.append(tool)
    return tuple(checked)


def _forbidden(name: str, why: str) -> Problem:
    return Problem(
        Kind.FORBIDDEN,
        f"tool '{name}': {why}; put it into an assistant file (`assistq assistants apply`) and call that assistant",
        code="tool_not_allowed",
        param="tools",
    )
