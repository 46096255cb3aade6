"""How answers are bounded, and what is told of tools that misbehave."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from schemas.chat import ToolCall
from worker.tools.base import ToolAnswer, ToolDefinition
from worker.tools.calls import MAX_ANSWER_BYTES, OpenedTools, bounded


class Scripted:
    """A tool that does what a test says."""

    definition = ToolDefinition("t", "", {})
    timeout_s = 5.0

    def __init__(self, do: Any) -> None:
        self._do = do

    def mask(self, text: str) -> str:
        return text.replace("hush", "[secret]")

    async def call(self, arguments: dict[str, Any], *, key: str | None = None) -> str:
        answer: str = await self._do(arguments)
        return answer


def run(do: Any, *, crashes: list[tuple[str, Exception]] | None = None, name: str = "t") -> ToolAnswer:
    told: list[tuple[str, Exception]] = [] if crashes is None else crashes
    tools = OpenedTools(
        definitions=[Scripted.definition],
        tools={"t": Scripted(do)},
        callers=frozenset({"theirs"}),
        on_crash=lambda tool, error: told.append((tool, error)),
    )
    (answer,) = asyncio.run(tools.run([ToolCall(id="1", name=name, arguments="")]))
    return answer


def test_no_arguments_at_all_are_an_empty_object() -> None:
    async def do(arguments: dict[str, Any]) -> str:
        return repr(arguments)

    assert run(do).content == "{}"


def test_an_unforeseen_error_is_an_answer_and_its_traceback_is_told_to_the_log() -> None:
    async def do(_: dict[str, Any]) -> str:
        raise KeyError("hush")

    crashes: list[tuple[str, Exception]] = []
    answer = run(do, crashes=crashes)

    assert answer.failed
    assert answer.content == "t failed: KeyError: '[secret]'"
    assert [(name, type(error)) for name, error in crashes] == [("t", KeyError)]
    assert crashes[0][1].__traceback__ is not None


def test_an_answer_does_not_show_a_secret() -> None:
    async def do(_: dict[str, Any]) -> str:
        return "hush!"

    assert run(do).content == "[secret]!"


def test_answers_come_in_the_order_of_the_calls_whichever_ends_first() -> None:
    async def do(arguments: dict[str, Any]) -> str:
        if arguments["n"]:
            later_ended.set()
        else:
            await later_ended.wait()
        return str(arguments["n"])

    async def main() -> tuple[ToolAnswer, ...]:
        tools = OpenedTools(
            definitions=[], tools={"t": Scripted(do)}, callers=frozenset(), on_crash=lambda _tool, _error: None
        )
        return await tools.run([ToolCall(id=str(n), name="t", arguments=f'{{"n": {n}}}') for n in (0, 1)])

    later_ended = asyncio.Event()
    first, second = asyncio.run(main())

    assert (first.content, second.content) == ("0", "1")
    assert second.ended_s <= first.ended_s


def test_a_time_out_of_the_tools_own_is_not_taken_for_its_limit() -> None:
    async def do(_: dict[str, Any]) -> str:
        raise TimeoutError("the database was slow")

    assert run(do).content == "t failed: TimeoutError: the database was slow"


def test_a_tool_that_cancels_itself_cancels_nobody_else() -> None:
    async def do(_: dict[str, Any]) -> str:
        raise asyncio.CancelledError

    answer = run(do)

    assert (answer.failed, answer.content) == (True, "t was cancelled")


def test_a_job_that_is_stopped_stops_its_tools() -> None:
    stopped = asyncio.Event()

    async def do(_: dict[str, Any]) -> str:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()
        return ""

    async def main() -> None:
        tools = OpenedTools(
            definitions=[], tools={"t": Scripted(do)}, callers=frozenset(), on_crash=lambda _tool, _error: None
        )
        running = asyncio.create_task(tools.run([ToolCall(id="1", name="t", arguments="")]))
        await asyncio.wait_for(started.wait(), 5)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    started = asyncio.Event()
    asyncio.run(main())
    assert stopped.is_set()


def test_a_callers_tool_is_not_run_here() -> None:
    async def do(_: dict[str, Any]) -> str:
        raise AssertionError("not this one")

    answer = run(do, name="theirs")

    assert answer.failed
    assert "its caller answers" in answer.content


@pytest.mark.parametrize("text", ["", "short", "a" * MAX_ANSWER_BYTES, "é" * (MAX_ANSWER_BYTES // 2)])
def test_a_text_within_the_bound_stays_as_it_is(text: str) -> None:
    assert bounded(text) == text


@pytest.mark.parametrize("text", ["a" * (MAX_ANSWER_BYTES + 1), "a" + "é" * MAX_ANSWER_BYTES])
def test_a_text_over_the_bound_is_cut_between_two_characters_and_says_so(text: str) -> None:
    cut = bounded(text)
    kept, note = cut.rsplit("\n", 1)

    assert note == "[cut off after 64 KiB]"
    assert text.startswith(kept)
    assert MAX_ANSWER_BYTES - 1 <= len(kept.encode()) <= MAX_ANSWER_BYTES


def test_what_a_database_does_not_store_is_replaced() -> None:
    assert bounded("a\x00b\ud800c") == "a\N{REPLACEMENT CHARACTER}b?c"
