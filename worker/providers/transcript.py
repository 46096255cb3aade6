"""What a Langdock assistant said and did, gathered from the items or the events of its answer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from schemas.chat import Message, ToolCall
from worker.providers.base import CallDelta, OnDelta, ResultDelta, TextDelta
from worker.providers.sse import OnEvent
from worker.providers.texts import Halves, mended


@dataclass(frozen=True, slots=True)
class Said:
    """The last text, None if the assistant ended without one, and the messages before it.

    In `exchanged` each call of a tool has its answer, and each answer its call.
    """

    answer: str | None
    exchanged: tuple[Message, ...]


def telling(on_delta: OnDelta | None) -> OnEvent | None:
    """Return who takes the events of a stream one by one and tells what they say, None if nobody listens."""
    return _Deltas(on_delta).event if on_delta is not None else None


class _Deltas:
    """Tells texts, and the calls of the assistant's own tools that have an id."""

    def __init__(self, on_delta: OnDelta) -> None:
        self._on_delta = on_delta
        self._halves = Halves()
        self._calls: list[str] = []

    def event(self, event: Any) -> None:
        kind = event.get("type") if isinstance(event, dict) else None
        call_id = str(event.get("toolCallId") or "") if kind else ""
        name = str(event.get("toolName") or "") if kind else ""
        match kind:
            case "text-delta":
                said = _first(event, "delta", "text", "textDelta")
                text = self._halves.joined("text", said) if isinstance(said, str) else ""
                if text:
                    self._on_delta(TextDelta(text=text))
            case "tool-input-available" | "tool-call" if call_id and call_id not in self._calls:
                arguments = _as_text(_first(event, "args", "input") or {})
                self._on_delta(CallDelta(position=len(self._calls), id=call_id, name=name, arguments=arguments))
                self._calls.append(call_id)
            case "tool-output-available" | "tool-output-error" | "tool-result" | "tool-error" if call_id:
                content = _as_text(_first(event, "result", "output", "errorText", "error"))
                self._on_delta(ResultDelta(call_id=call_id, name=name or None, content=content))
            case _:
                return


class Transcript:
    """Gathers parts in the order of their arrival; unknown ones (reasoning, sources, …) are passed over."""

    def __init__(self) -> None:
        self._done: list[Message] = []
        self._text: list[str] = []
        self._calls: list[ToolCall] = []
        self._answers: list[Message] = []

    def item(self, item: Any) -> None:
        """Take one message of a whole answer; its content may be a text or parts, under either name."""
        if not isinstance(item, dict) or item.get("role") not in ("assistant", "tool"):
            return
        if item["role"] == "assistant":
            self._step_ends()
        parts = item.get("parts", item.get("content"))
        if isinstance(parts, str):
            self._says(parts)
            return
        for part in parts if isinstance(parts, list) else ():
            if isinstance(part, dict):
                self._part(part)

    def event(self, event: dict[str, Any]) -> None:
        """Take one event of a stream, in the words of decision 72 or of the AI SDK's UI messages."""
        match event.get("type"):
            case "text-delta":
                self._says(_first(event, "delta", "text", "textDelta"))
            case "tool-input-available":
                self._calls_tool(event)
            case "tool-output-available" | "tool-output-error":
                self._tool_answers(event)
            case "tool-call" | "tool-result" | "tool-error":
                self._part(event)
            case "start-step" | "finish-step":
                self._step_ends()
            case _:
                return

    def said(self) -> Said:
        """Return what it came to."""
        self._step_ends()
        answer = self._done[-1].text if self._done and self._done[-1].role == "assistant" else None
        if self._done and self._done[-1].tool_calls:
            answer = None
        before = self._done if answer is None else self._done[:-1]
        return Said(answer=answer or None, exchanged=_paired(before))

    def _part(self, part: dict[str, Any]) -> None:
        kind = part.get("type")
        match kind:
            case "text":
                self._says(part.get("text"))
            case "tool-call" | "tool-invocation":
                self._calls_tool(part)
            case "tool-result" | "tool-error":
                self._tool_answers(part)
            case "step-start":
                self._step_ends()
            case str() if kind == "dynamic-tool" or kind.startswith("tool-"):
                # A UIMessage's part is the call and, by its state, the answer to it.
                name = part.get("toolName") or kind.removeprefix("tool-")
                self._calls_tool(part | {"toolName": name})
                if part.get("state") in ("output-available", "output-error"):
                    self._tool_answers(part | {"toolName": name})
            case _:
                return

    def _says(self, text: Any) -> None:
        if not isinstance(text, str):
            return
        if self._answers:
            self._step_ends()
        self._text.append(text)

    def _calls_tool(self, part: dict[str, Any]) -> None:
        call_id = part.get("toolCallId") or f"call_{len(self._done)}_{len(self._calls)}"
        arguments = _first(part, "args", "input")
        self._calls.append(
            ToolCall(id=str(call_id), name=str(part.get("toolName") or ""), arguments=_as_text(arguments or {}))
        )

    def _tool_answers(self, part: dict[str, Any]) -> None:
        call_id = part.get("toolCallId")
        if not call_id:
            # Answers that name no call come in the order of the calls.
            position = len(self._answers)
            call_id = self._calls[position].id if position < len(self._calls) else "call_unknown"
        content = _as_text(_first(part, "result", "output", "errorText", "error"))
        self._answers.append(
            Message(role="tool", tool_call_id=str(call_id), name=part.get("toolName") or None, content=content)
        )

    def _step_ends(self) -> None:
        text = mended("".join(self._text))
        if text or self._calls:
            self._done.append(Message(role="assistant", content=text or None, tool_calls=tuple(self._calls)))
        self._done += self._answers
        self._text, self._calls, self._answers = [], [], []


def _paired(messages: list[Message]) -> tuple[Message, ...]:
    """Leave out calls without an answer and answers without a call: no provider takes such a history."""
    asked = {call.id for message in messages for call in message.tool_calls}
    answered = {message.tool_call_id for message in messages}
    kept = []
    for message in messages:
        calls = tuple(call for call in message.tool_calls if call.id in answered)
        if message.role == "tool":
            if message.tool_call_id in asked:
                kept.append(message)
        elif calls or message.text:
            kept.append(message.model_copy(update={"tool_calls": calls}))
    return tuple(kept)


def _first(part: dict[str, Any], *names: str) -> Any:
    return next((part[name] for name in names if part.get(name) is not None), None)


def _as_text(value: Any) -> str:
    return str(mended(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)))
