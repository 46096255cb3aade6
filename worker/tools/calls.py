"""Runs the tool calls of one reply: all at once, each within its time, and every one with an answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

from schemas.chat import ToolCall
from worker.tools import arguments
from worker.tools.base import Answered, ToolAnswer, ToolDefinition
from worker.tools.tool import Tool, ToolFailed

MAX_ANSWER_BYTES = 64 * 1024

OnCrash = Callable[[str, Exception], None]
"""Told the tool's name and an error that it did not foresee, whose traceback belongs in the log."""


class OpenedTools:
    """The tools of one job."""

    def __init__(
        self,
        *,
        definitions: Sequence[ToolDefinition],
        tools: Mapping[str, Tool],
        callers: frozenset[str],
        on_crash: OnCrash,
    ) -> None:
        """Take what the model is offered, the tools by offered name, and the names that are the caller's."""
        self._definitions = tuple(definitions)
        self._tools = tools
        self._callers = callers
        self._on_crash = on_crash

    @property
    def definitions(self) -> tuple[ToolDefinition, ...]:
        """Return what the model is offered, tools of the caller included."""
        return self._definitions

    def is_the_callers(self, name: str) -> bool:
        """Return whether a call of this name ends the job, for its caller to answer."""
        return name in self._callers

    async def run(
        self, calls: Sequence[ToolCall], *, keys: Sequence[str] = (), answered: Answered | None = None
    ) -> tuple[ToolAnswer, ...]:
        """Run the calls in parallel; answers come in the order of the calls."""

        async def run_one(position: int, call: ToolCall) -> ToolAnswer:
            answer = await self._answer(call, key=keys[position] if keys else None)
            if answered is not None:
                await answered(position, answer)
            return answer

        try:
            async with asyncio.TaskGroup() as group:
                running = [
                    group.create_task(run_one(position, call), name=f"tool {call.name}")
                    for position, call in enumerate(calls)
                ]
        except BaseExceptionGroup as raised:
            # A tool raises nothing, so `answered` did, of which one error is enough.
            raise raised.exceptions[0] from None
        return tuple(task.result() for task in running)

    async def _answer(self, call: ToolCall, *, key: str | None) -> ToolAnswer:
        began_s = time.monotonic()
        failed = False
        tool = self._tools.get(call.name)
        try:
            content = await self._content(tool, call, key=key)
        except ToolFailed as exc:
            failed, content = True, str(exc)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise  # the job itself is being stopped
            failed, content = True, f"{call.name} was cancelled"
        except Exception as exc:  # noqa: BLE001 - whatever a tool does is an answer to the model
            self._on_crash(call.name, exc)
            failed, content = True, f"{call.name} failed: {type(exc).__name__}: {exc}"
        return ToolAnswer(
            call_id=call.id,
            name=call.name,
            content=bounded(tool.mask(content) if tool else content),
            failed=failed,
            began_s=began_s,
            ended_s=time.monotonic(),
        )

    async def _content(self, tool: Tool | None, call: ToolCall, *, key: str | None) -> str:
        if tool is None:
            raise ToolFailed(self._unknown(call.name))
        given = arguments.parse(call.arguments)
        deadline = asyncio.timeout(tool.timeout_s)
        try:
            async with deadline:
                return await tool.call(given, key=key)
        except TimeoutError as exc:
            if not deadline.expired():
                raise  # the tool's own
            raise ToolFailed(f"{call.name} did not answer within {tool.timeout_s:g} s") from exc

    def _unknown(self, name: str) -> str:
        if name in self._callers:
            return f"{name} is not run here: its caller answers"
        offered = ", ".join(sorted(self._tools)) or "none"
        return f"there is no tool '{name}'; the tools are: {offered}"


def bounded(text: str) -> str:
    """Return the text as storable UTF-8 of at most some MAX_ANSWER_BYTES, and say so where it was cut."""
    # PostgreSQL takes neither NUL nor half a surrogate pair.
    data = text.replace("\x00", "\N{REPLACEMENT CHARACTER}").encode(errors="replace")
    if len(data) <= MAX_ANSWER_BYTES:
        return data.decode()
    return f"{data[:MAX_ANSWER_BYTES].decode(errors='ignore')}\n[cut off after {MAX_ANSWER_BYTES // 1024} KiB]"
