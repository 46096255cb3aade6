"""Python functions as tools: what a model is told, how arguments are read, what comes back."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from schemas.chat import ToolCall
from schemas.tool import PythonTool
from tests import tool_functions
from worker.tools import builtin
from worker.tools.base import ToolAnswer, ToolsUnavailable
from worker.tools.calls import OpenedTools
from worker.tools.python_functions import GROUP, FunctionTool, PythonFunctions


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Iterator[None]:
    tool_functions.ENOUGH.clear()
    yield
    tool_functions.ENOUGH.set()


def tool(name: str, *, timeout_s: float = 5.0) -> FunctionTool:
    return tool_functions.functions(name).tool(PythonTool(type="python", name=name, timeout_s=timeout_s))


def run(name: str, arguments: dict[str, Any] | None = None, *, timeout_s: float = 5.0) -> ToolAnswer:
    made = tool(name, timeout_s=timeout_s)
    tools = OpenedTools(
        definitions=[made.definition], tools={name: made}, callers=frozenset(), on_crash=lambda _tool, _error: None
    )
    (answer,) = asyncio.run(tools.run([ToolCall(id="1", name=name, arguments=json.dumps(arguments or {}))]))
    return answer


def test_a_model_is_told_the_docstring_and_the_signature() -> None:
    definition = tool("book").definition

    assert definition.description == "Book a room.\n\nAnd nothing else."
    assert definition.parameters["required"] == ["guest"]
    assert definition.parameters["additionalProperties"] is False
    assert definition.parameters["properties"]["guest"] == {"type": "string", "description": "Who comes."}
    assert definition.parameters["properties"]["nights"] == {"type": "integer", "default": 1}
    assert definition.parameters["properties"]["room"]["enum"] == ["single", "double"]
    assert set(definition.parameters["properties"]) == {"guest", "nights", "room", "json", "_private"}


def test_arguments_are_coerced_to_the_annotated_types_and_the_result_is_json() -> None:
    answer = run("book", {"guest": "Ann", "nights": "3", "json": {"street": "Elm"}, "_private": True})

    assert not answer.failed
    assert json.loads(answer.content) == {
        "guest": "Ann",
        "nights": 3,
        "room": "single",
        "json": {"street": "Elm", "number": 1},
        "private": True,
    }


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({}, "guest: Field required"),
        ({"guest": "Ann", "nights": "many"}, "nights: "),
        ({"guest": "Ann", "json": {"number": 2}}, "json.street: "),
        ({"guest": "Ann", "pets": 2}, "pets: "),
        ({"guest": "Ann", "room": "suite"}, "room: "),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments: dict[str, Any], told: str) -> None:
    answer = run("book", arguments)

    assert answer.failed
    assert told in answer.content


def test_an_exception_is_an_answer_without_a_traceback() -> None:
    answer = run("fail")

    assert (answer.failed, answer.content) == (True, "fail failed: ValueError: broken")


@pytest.mark.parametrize("name", ["hang", "hang_async"])
def test_a_function_that_hangs_is_left_behind(name: str) -> None:
    assert run(name, timeout_s=0.1).content == f"{name} did not answer within 0.1 s"


def test_functions_that_hang_do_not_keep_another_from_running() -> None:
    hanging, quick = tool("hang", timeout_s=0.5), tool("echo")
    tools = OpenedTools(
        definitions=[], tools={"hang": hanging, "echo": quick}, callers=frozenset(), on_crash=lambda _tool, _error: None
    )
    calls = [ToolCall(id=str(n), name="hang", arguments="") for n in range(64)]
    *_, answer = asyncio.run(tools.run([*calls, ToolCall(id="last", name="echo", arguments='{"text": "a"}')]))

    assert answer.content == "a"


def test_a_synchronous_function_does_not_hold_the_event_loop() -> None:
    async def main() -> str:
        running = asyncio.create_task(tool("hang").call({}))
        await asyncio.sleep(0)
        tool_functions.ENOUGH.set()  # reached only if the loop is free
        return await running

    assert asyncio.run(main()) == "late"


@pytest.mark.parametrize("name", ["leave", "leave_async"])
def test_a_function_cannot_end_the_worker(name: str) -> None:
    answer = run(name)

    assert answer.failed
    assert "exit" in answer.content


@pytest.mark.parametrize("name", ["rage", "rage_async"])
def test_what_is_no_exception_is_an_answer_too(name: str) -> None:
    assert "_Uncaught: enough" in run(name).content


def test_a_stop_iteration_is_an_answer_too() -> None:
    assert "StopIteration: enough" in run("stop").content


def test_what_json_cannot_say_is_an_answer() -> None:
    assert "returned a object" in run("odd").content


def test_an_answer_is_storable_and_bounded() -> None:
    assert run("nul").content == "a\N{REPLACEMENT CHARACTER}b?c"
    assert run("large").content.endswith("[cut off after 64 KiB]")


def test_a_callable_object_is_a_function() -> None:
    assert run("count", {"step": 2}).content == "43"


def test_a_tool_that_is_not_installed_names_the_entry_point_group() -> None:
    with pytest.raises(ToolsUnavailable, match=GROUP) as unavailable:
        PythonFunctions().tool(PythonTool(type="python", name="nobody_installed_this"))

    assert unavailable.value.configuration


@pytest.mark.parametrize(
    ("name", "told"), [("many", r"\*texts"), ("not_a_function", "callable"), ("nowhere", "AttributeError")]
)
def test_a_tool_that_cannot_be_called_by_a_model_says_why(name: str, told: str) -> None:
    with pytest.raises(ToolsUnavailable, match=told) as unavailable:
        tool(name)

    assert unavailable.value.configuration


def test_a_name_that_is_installed_twice_is_refused() -> None:
    found = [EntryPoint("echo", "a:echo", GROUP), EntryPoint("echo", "b:echo", GROUP)]

    with pytest.raises(ToolsUnavailable, match="a:echo and b:echo"):
        PythonFunctions(lambda: found).tool(PythonTool(type="python", name="echo"))


def test_our_own_tool_counts() -> None:
    found = [EntryPoint("word_count", "worker.tools.builtin:word_count", GROUP)]
    made = PythonFunctions(lambda: found).tool(PythonTool(type="python", name="word_count"))

    assert json.loads(asyncio.run(made.call({"text": "two words"}))) == {"words": 2, "characters": 9}
    assert made.definition.parameters["properties"]["text"]["description"]
    assert builtin.word_count(" ") == {"words": 0, "characters": 1}


def test_a_thread_that_ends_after_its_loop_disturbs_nobody(caplog: pytest.LogCaptureFixture) -> None:
    ended = threading.Event()
    before = threading.excepthook
    faults: list[threading.ExceptHookArgs] = []
    threading.excepthook = faults.append
    try:
        assert run("hang", timeout_s=0.05).failed
        (thread,) = [each for each in threading.enumerate() if each.name == "tool"]
        tool_functions.ENOUGH.set()
        thread.join(5)
    finally:
        threading.excepthook = before
        ended.set()

    assert not faults
    assert not caplog.records
