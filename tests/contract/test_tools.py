"""What every kind of tool must do, each behind a toolbox as a job sees it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from schemas.chat import ToolCall
from schemas.tool import HttpAction, McpServer, PythonTool, ToolSpec
from tests import mcp_server, tool_functions
from tests.loopback_http import Asked, LoopbackHttp, Told
from worker.tools.base import ToolAnswer, ToolDefinition
from worker.tools.toolbox import WorkerToolbox

NAMES = ("echo", "fail", "hang", "meet")
PATIENT_S = 10.0
HASTY_S = 0.3
TEXT_SCHEMA = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}


@dataclass(frozen=True)
class Kit:
    """One kind of tool: the specs for a time limit, and what precedes each of NAMES."""

    specs: Callable[[float], list[ToolSpec]]
    prefix: str = ""

    def run(self, *calls: tuple[str, str], timeout_s: float = PATIENT_S) -> tuple[ToolAnswer, ...]:
        """Open the tools, make the calls of one reply, and close them."""
        return asyncio.run(self._run(calls, timeout_s))[1]

    def definitions(self) -> dict[str, ToolDefinition]:
        """Return what a model is offered, by name."""
        offered = asyncio.run(self._run((), PATIENT_S))[0]
        return {definition.name.removeprefix(self.prefix): definition for definition in offered}

    async def _run(
        self, calls: tuple[tuple[str, str], ...], timeout_s: float
    ) -> tuple[tuple[ToolDefinition, ...], tuple[ToolAnswer, ...]]:
        toolbox = WorkerToolbox(
            environment={},
            allows_private=lambda _workspace: True,
            on_crash=lambda _name, _error: None,
            functions=tool_functions.functions(*NAMES),
        )
        try:
            async with toolbox.open(self.specs(timeout_s), workspace="demo") as tools:
                answers = await tools.run(
                    [
                        ToolCall(id=f"c{n}", name=self.prefix + name, arguments=text)
                        for n, (name, text) in enumerate(calls)
                    ]
                )
                return tools.definitions, answers
        finally:
            await toolbox.aclose()


def http_kit() -> Iterator[Kit]:
    meeting = threading.Barrier(2)

    def answer(asked: Asked) -> Told:
        match asked.target.partition("?")[0]:
            case "/echo":
                return Told(asked.target.partition("=")[2].encode())
            case "/fail":
                return Told(b"broken", status=500)
            case "/meet":
                meeting.wait(PATIENT_S)
                return Told(b"met")
            case _:
                server.closing.wait(PATIENT_S)
                return Told(b"late")

    with LoopbackHttp(answer) as server:
        yield Kit(
            lambda timeout_s: [
                HttpAction(
                    type="http",
                    name=name,
                    description="A tool.",
                    url=f"{server.url}/{name}" + ("?text={{ text }}" if name == "echo" else ""),
                    parameters=TEXT_SCHEMA if name == "echo" else {"type": "object"},
                    timeout_s=timeout_s,
                )
                for name in NAMES
            ]
        )


def python_kit() -> Iterator[Kit]:
    tool_functions.ENOUGH.clear()
    yield Kit(lambda timeout_s: [PythonTool(type="python", name=name, timeout_s=timeout_s) for name in NAMES])
    tool_functions.ENOUGH.set()


def stdio_kit() -> Iterator[Kit]:
    yield Kit(
        lambda timeout_s: [
            McpServer(type="mcp", name="srv", command=mcp_server.command(), tools=NAMES, timeout_s=timeout_s)
        ],
        prefix="srv_",
    )


def streamable_http_kit() -> Iterator[Kit]:
    with mcp_server.over_http() as served:
        yield Kit(
            lambda timeout_s: [McpServer(type="mcp", name="srv", url=served.url, tools=NAMES, timeout_s=timeout_s)],
            prefix="srv_",
        )


@pytest.fixture(params=[http_kit, python_kit, stdio_kit, streamable_http_kit], ids=lambda made: made.__name__)
def kit(request: pytest.FixtureRequest) -> Iterator[Kit]:
    yield from request.param()


def test_a_model_is_offered_each_tool_with_its_schema(kit: Kit) -> None:
    offered = kit.definitions()

    assert list(offered) == list(NAMES)
    assert offered["echo"].description
    assert offered["echo"].parameters["properties"]["text"]["type"] == "string"
    assert offered["echo"].parameters["required"] == ["text"]


def test_a_call_is_answered_with_what_the_tool_says(kit: Kit) -> None:
    (answer,) = kit.run(("echo", '{"text": "hello"}'))

    assert (answer.call_id, answer.name, answer.content) == ("c0", f"{kit.prefix}echo", "hello")
    assert not answer.failed


def test_all_calls_of_a_reply_are_in_flight_before_any_is_answered(kit: Kit) -> None:
    one, other = kit.run(("meet", "{}"), ("meet", "{}"))

    assert (one.content, other.content) == ("met", "met")
    assert max(one.began_s, other.began_s) < min(one.ended_s, other.ended_s)


def test_answers_come_in_the_order_of_the_calls(kit: Kit) -> None:
    calls = [("meet", "{}"), ("echo", '{"text": "a"}'), ("fail", ""), ("echo", '{"text": "b"}'), ("meet", "{}")]
    answers = kit.run(*calls)

    assert [answer.call_id for answer in answers] == ["c0", "c1", "c2", "c3", "c4"]
    assert [answer.failed for answer in answers] == [False, False, True, False, False]
    assert [answers[index].content for index in (0, 1, 3, 4)] == ["met", "a", "b", "met"]


def test_a_tool_that_fails_is_an_answer(kit: Kit) -> None:
    (answer,) = kit.run(("fail", "{}"))

    assert answer.failed
    assert "broken" in answer.content or "Error executing tool fail" in answer.content
    assert "Traceback" not in answer.content


def test_a_tool_that_never_answers_is_left_at_its_time_limit(kit: Kit) -> None:
    (answer,) = kit.run(("hang", "{}"), timeout_s=HASTY_S)

    assert answer.failed
    assert answer.content == f"{kit.prefix}hang did not answer within 0.3 s"
    assert HASTY_S <= answer.ended_s - answer.began_s < PATIENT_S


def test_arguments_that_cannot_be_used_are_answered_with_what_is_wrong(kit: Kit) -> None:
    wrong = {
        '{"text": "a"': "not JSON",
        '{"text": NaN}': "not JSON",
        '{"text": "\\ud800"}': "not JSON",
        "[" * 100_000: "not JSON",
        '["a"]': "must be a JSON object",
        "{}": "text",
        '{"text": {}}': "text",
    }
    answers = kit.run(*(("echo", arguments) for arguments in wrong))

    assert all(answer.failed for answer in answers)
    assert [told for told, answer in zip(wrong.values(), answers, strict=True) if told not in answer.content] == []


def test_an_unknown_tool_is_answered_with_the_names_there_are(kit: Kit) -> None:
    (answer,) = kit.run(("ecko", "{}"))

    assert answer.failed
    assert f"there is no tool '{kit.prefix}ecko'" in answer.content
    assert f"{kit.prefix}echo" in answer.content


def test_a_long_answer_within_the_bound_arrives_whole(kit: Kit) -> None:
    text = "a" * 30_000
    (answer,) = kit.run(("echo", f'{{"text": "{text}"}}'))

    assert answer.content == text
