"""A toolbox with tools of every kind: what is offered, whose a tool is, and names that collide."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from schemas.chat import ToolCall
from schemas.tool import ClientTool, HttpAction, McpServer, PythonTool, ToolSpec
from tests import mcp_server, tool_functions
from worker.tools.base import ToolAnswer, ToolDefinition, ToolsUnavailable
from worker.tools.toolbox import WorkerToolbox

SERVER = McpServer(type="mcp", name="srv", command=mcp_server.command(), tools=("echo",))
HTTP = HttpAction(type="http", name="find", description="Find it.", url="http://nowhere.test/{{ id }}")
PYTHON = PythonTool(type="python", name="echo")
CLIENT = ClientTool(type="function", name="ask", description="Ask the user.", parameters={"type": "object"})


def opened(
    specs: Sequence[ToolSpec], *calls: str
) -> tuple[tuple[ToolDefinition, ...], dict[str, bool], tuple[ToolAnswer, ...]]:
    async def main() -> tuple[tuple[ToolDefinition, ...], dict[str, bool], tuple[ToolAnswer, ...]]:
        toolbox = WorkerToolbox(
            environment={},
            allows_private=lambda _workspace: True,
            on_crash=lambda _name, _error: None,
            functions=tool_functions.functions("echo"),
        )
        try:
            async with toolbox.open(specs, workspace="demo") as tools:
                theirs = {each.name: tools.is_the_callers(each.name) for each in tools.definitions}
                answers = await tools.run([ToolCall(id=name, name=name, arguments='{"text": "a"}') for name in calls])
                return tools.definitions, theirs, answers
        finally:
            await toolbox.aclose()

    return asyncio.run(main())


def test_tools_of_every_kind_are_offered_in_the_order_of_the_assistants_file() -> None:
    definitions, theirs, answers = opened([CLIENT, SERVER, PYTHON, HTTP], "srv_echo", "echo")

    assert [definition.name for definition in definitions] == ["ask", "srv_echo", "echo", "find"]
    assert theirs == {"ask": True, "srv_echo": False, "echo": False, "find": False}
    assert [answer.content for answer in answers] == ["a", "a"]
    assert definitions[0] == ToolDefinition("ask", "Ask the user.", {"type": "object"})


def test_a_job_without_tools_has_none() -> None:
    assert opened([]) == ((), {}, ())


def test_two_tools_of_one_name_are_refused_and_both_are_named() -> None:
    taken = HttpAction(type="http", name="srv_echo", url="http://nowhere.test/")

    with pytest.raises(ToolsUnavailable) as unavailable:
        opened([taken, SERVER])

    assert "offered as 'srv_echo'" in str(unavailable.value)
    assert "HTTP action 'srv_echo'" in str(unavailable.value)
    assert "MCP server 'srv'" in str(unavailable.value)
    assert unavailable.value.configuration


def test_a_callers_tool_collides_like_any_other() -> None:
    with pytest.raises(ToolsUnavailable, match="caller's tool 'echo'"):
        opened([PYTHON, ClientTool(type="function", name="echo")])
