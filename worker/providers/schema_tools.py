"""Tool calls for models that have none: asked for as JSON of a schema, read back as calls.

A small or local model that ignores `tools` still keeps to a JSON Schema. So the tools and
the answer become the alternatives of one schema; what comes back is either a call or the
answer. One call a reply. Turns that show a model how (an assistant's template) have the
same form: `{"tool": "add", "arguments": {"a": 1}}`, then the user's `add says: 2`, then
`{"answer": "2"}`.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import replace
from typing import Any

from pydantic_core import from_json

from schemas.chat import Message, TextPart, ToolCall
from schemas.tool import NamedToolChoice
from worker.providers.base import ChatReply, ChatRequest, OnDelta, Provider
from worker.providers.errors import ReplyMalformed
from worker.providers.texts import mended
from worker.tools.base import ToolDefinition

_TOOL, _ARGUMENTS, _ANSWER = "tool", "arguments", "answer"
_TEXT = {"type": "string"}


class SchemaTools:
    """A provider around another one, which needs to know only structured output."""

    def __init__(self, provider: Provider) -> None:
        """Ask this provider."""
        self._provider = provider
        self.name = provider.name

    async def complete(self, request: ChatRequest, *, on_delta: OnDelta | None = None) -> ChatReply:
        """Buy one completion; without tools to call, the request goes through but for its old calls.

        With them nothing is told as it comes: it is JSON of ours, not the answer.
        """
        plain = replace(
            request,
            messages=tuple(_plain(message) for message in request.messages),
            tools=(),
            tool_choice=None,
            parallel_tool_calls=None,
        )
        if not request.tools or request.tool_choice == "none":
            return await self._provider.complete(plain, on_delta=on_delta)
        reply = await self._provider.complete(
            replace(
                plain,
                messages=_explained(plain.messages, request.tools),
                response_schema=_schema(request),
                response_format=None,
            )
        )
        return _read(request, reply)


def _schema(request: ChatRequest) -> dict[str, Any]:
    choice = request.tool_choice
    named = choice.function.name if isinstance(choice, NamedToolChoice) else None
    alternatives = [
        {_TOOL: {"const": tool.name}, _ARGUMENTS: tool.parameters}
        for tool in request.tools
        if named in (None, tool.name)
    ]
    if choice in (None, "auto") or _has_tool_answer(request.messages):
        alternatives.append({_ANSWER: _answer_schema(request)})
    return {"anyOf": [_object(each, place=f"#/anyOf/{number}") for number, each in enumerate(alternatives)]}


def _has_tool_answer(messages: tuple[Message, ...]) -> bool:
    """Return whether a tool has answered since the user spoke last: what had to be called, was."""
    last = next((message.role for message in reversed(messages) if message.role in ("user", "tool")), None)
    return last == "tool"


def _answer_schema(request: ChatRequest) -> dict[str, Any]:
    match request.response_format:
        case {"type": "json_schema", "json_schema": {"schema": dict() as schema}}:
            return schema
        case {"type": "json_object"}:
            return {"type": "object"}
        case _:
            return request.response_schema or _TEXT


def _object(properties: dict[str, Any], *, place: str) -> dict[str, Any]:
    moved = {name: _moved(schema, place=f"{place}/properties/{name}") for name, schema in properties.items()}
    return {"type": "object", "properties": moved, "required": list(moved), "additionalProperties": False}


def _moved(node: Any, *, place: str) -> Any:
    """Return a schema whose references to its own root lead to where it stands now."""
    match node:
        case dict():
            moved = {key: _moved(value, place=place) for key, value in node.items()}
            reference = node.get("$ref")
            if isinstance(reference, str) and (reference == "#" or reference.startswith("#/")):
                moved["$ref"] = place + reference[1:]
            return moved
        case list():
            return [_moved(each, place=place) for each in node]
        case _:
            return node


def _explained(messages: tuple[Message, ...], tools: tuple[ToolDefinition, ...]) -> tuple[Message, ...]:
    """Return the messages with a word on the tools in their first one: some templates take one system message."""
    listed = "\n".join(
        f"- {tool.name}: {tool.description} Arguments: {json.dumps(tool.parameters, ensure_ascii=False)}"
        for tool in tools
    )
    explanation = (
        f'To use a tool, answer {{"{_TOOL}": name, "{_ARGUMENTS}": {{…}}}}. '
        f'To answer, write {{"{_ANSWER}": …}}. The tools:\n{listed}'
    )
    if not messages or messages[0].role != "system":
        return (Message(role="system", content=explanation), *messages)
    first, *others = messages
    if isinstance(first.content, tuple):
        return (first.model_copy(update={"content": (*first.content, TextPart(text=f"\n\n{explanation}"))}), *others)
    return (first.model_copy(update={"content": f"{first.text}\n\n{explanation}"}), *others)


def _plain(message: Message) -> Message:
    """Return a message of tool calls or their answers as one that any chat template takes."""
    if message.role == "tool":
        return Message(role="user", content=f"{message.name or 'tool'} says: {message.text}")
    if message.tool_calls:
        calls = [f'{{"{_TOOL}": {_json(call.name)}, "{_ARGUMENTS}": {call.arguments}}}' for call in message.tool_calls]
        return Message(role="assistant", content="\n".join([*filter(None, [message.text]), *calls]))
    return message


def _read(request: ChatRequest, reply: ChatReply) -> ChatReply:
    """Return the reply with the call or the answer that its JSON holds."""
    if reply.refusal or reply.finish_reason == "content_filter":
        return reply
    reply = replace(reply, alternatives=tuple(_text_of(text) for text in reply.alternatives))
    try:
        value = mended(json.loads(reply.content))
    except (ValueError, RecursionError) as exc:
        if reply.finish_reason == "length":
            return _read_cut(request, reply)
        raise ReplyMalformed(f"neither a tool call nor an answer: {reply.content[:200]!r}") from exc
    if isinstance(value, dict) and _TOOL in value:
        return _calling(request, reply, name=str(value[_TOOL]), arguments=_json(value.get(_ARGUMENTS, {})))
    return replace(reply, content=_text(value))


def _read_cut(request: ChatRequest, reply: ChatReply) -> ChatReply:
    """Return what there is of a reply that `max_tokens` cut off, as it would be without our wrapping."""
    try:
        value = from_json(reply.content, allow_partial="trailing-strings")
    except ValueError:
        return reply
    if isinstance(value, dict) and _TOOL in value:
        # Half an object is no JSON, which the tool's answer will say; nothing at all would be an empty object.
        arguments = reply.content.partition(f'"{_ARGUMENTS}":')[2].strip() or reply.content
        return _calling(request, reply, name=str(value[_TOOL]), arguments=arguments)
    answer = value.get(_ANSWER, "") if isinstance(value, dict) else None
    return replace(reply, content=answer) if isinstance(answer, str) else reply


def _calling(request: ChatRequest, reply: ChatReply, *, name: str, arguments: str) -> ChatReply:
    call = ToolCall(id=f"call_{request.step_id or uuid.uuid4().hex}", name=name, arguments=arguments)
    return replace(reply, content="", tool_calls=(call,), finish_reason="tool_calls")


def _text_of(choice: str) -> str:
    """Return the answer of one more choice, the choice as it is if it holds none."""
    try:
        value = mended(json.loads(choice))
    except (ValueError, RecursionError):
        return choice
    return _text(value) if isinstance(value, dict) and _ANSWER in value else choice


def _text(value: Any) -> str:
    answer = value[_ANSWER] if isinstance(value, dict) and _ANSWER in value else value
    return answer if isinstance(answer, str) else _json(answer)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
