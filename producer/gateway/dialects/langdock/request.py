"""What a Langdock client asks for, and the job that it becomes (CONTRACT.md 3.2).

`content` is a string in this API, also for tools: a message of role `assistant` may hold the parts of an earlier
answer as JSON (`[{"type": "tool-call", "toolCallId", "toolName", "args"}]`), one of role `tool` its results
(`[{"type": "tool-result", "toolCallId", "result"}]`). A tool's message that is other text answers the first call
that waits; where none waits it is given to the model as a user's message, for providers refuse it otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, Literal, Self
from uuid import UUID

from pydantic import BaseModel, Field, ValidationError, model_validator

from producer.gateway.dialects.langdock.attached import Attached, with_parts
from producer.gateway.problem import Kind, Problem
from producer.gateway.tools import checked_tools
from schemas.assistant import DESCRIPTION_MAX_CHARS, INLINE_NAME_MAX_CHARS, INSTRUCTIONS_MAX_CHARS, InlineAssistant
from schemas.chat import Message, ToolCall
from schemas.job import InvokeJob
from schemas.output import OutputSpec
from schemas.tool import HttpAction, ToolSpec


class Capabilities(BaseModel):
    """What a model may do beside talking; `dataAnalyst` is accepted and ignored, as Langdock does."""

    webSearch: bool = False  # noqa: N815 - Langdock's names, here and below
    dataAnalyst: bool = False  # noqa: N815
    imageGeneration: bool = False  # noqa: N815


class TemporaryAssistant(BaseModel):
    """An assistant that is not stored; its instructions are text, not a template."""

    name: str = Field(min_length=1, max_length=INLINE_NAME_MAX_CHARS)
    instructions: str = Field(max_length=INSTRUCTIONS_MAX_CHARS)
    description: str | None = Field(default=None, max_length=DESCRIPTION_MAX_CHARS)
    temperature: float | None = Field(default=None, ge=0, le=1)
    model: str | None = Field(default=None, min_length=1, max_length=200)
    capabilities: Capabilities | None = None
    actions: list[dict[str, Any]] | None = Field(default=None, description="HTTP tools; see `HttpAction`")
    vectorDb: list[Any] | None = None  # noqa: N815
    knowledgeFolderIds: list[str] | None = None  # noqa: N815
    attachmentIds: list[UUID] | None = None  # noqa: N815


class RequestMessage(BaseModel):
    """One message of the conversation so far; only a user's may have attachments."""

    role: Literal["user", "assistant", "tool"]
    content: str
    attachmentIds: list[UUID] | None = None  # noqa: N815

    @model_validator(mode="after")
    def _attachments_are_the_users(self) -> Self:
        if self.attachmentIds and self.role != "user":
            raise ValueError(f"a message of role {self.role} has no attachmentIds; put them on a user's message")
        return self


class CompletionRequest(BaseModel):
    """What is asked of an assistant: of a stored one by its id, or of a temporary one."""

    assistantId: str | None = Field(default=None, min_length=1, max_length=512)  # noqa: N815
    assistant: TemporaryAssistant | None = None
    messages: list[RequestMessage] = Field(min_length=1, fail_fast=True)
    stream: bool = False
    output: OutputSpec | None = None
    maxSteps: int | None = Field(default=None, ge=1, le=20)  # noqa: N815

    @model_validator(mode="after")
    def _names_one_assistant(self) -> Self:
        if (self.assistantId is None) == (self.assistant is None):
            raise ValueError("give exactly one of `assistantId` and `assistant`")
        return self


def job_of_stored(
    body: CompletionRequest, address: str, attached: Attached, *, attachment_ids: Iterable[UUID] = ()
) -> InvokeJob:
    """Return the job of a stored assistant; its attachments lead the conversation."""
    return _job(body, messages=_conversation(body.messages, list(attachment_ids), attached), assistant=address)


def job_of_temporary(
    body: CompletionRequest, temporary: TemporaryAssistant, attached: Attached, *, workspace: str
) -> InvokeJob:
    """Return the job of a temporary assistant; Problem 501 for what it asks that nothing here can do."""
    wanted = temporary.capabilities or Capabilities()
    refuse_what_is_lacking(web_search=wanted.webSearch, image_generation=wanted.imageGeneration)
    _lacks(temporary.vectorDb, "assistant.vectorDb is")
    _lacks(temporary.knowledgeFolderIds, "assistant.knowledgeFolderIds are")
    inline = InlineAssistant(
        workspace=workspace,
        name=temporary.name,
        description=temporary.description or "",
        temperature=temporary.temperature,
        model=temporary.model,
        tools=checked_tools(tools_of(temporary.actions or (), where="assistant.actions")) or None,
    )
    said = _conversation(body.messages, temporary.attachmentIds or [], attached)
    if temporary.instructions:
        # Not the inline assistant's own, which are a template: `{{x}}` is text here.
        said = (Message(role="system", content=temporary.instructions), *said)
    return _job(body, messages=said, inline=inline)


def refuse_what_is_lacking(*, web_search: bool | None, image_generation: bool | None) -> None:
    """Raise Problem 501 for a capability that is asked for."""
    _lacks(web_search, "web search is")
    _lacks(image_generation, "image generation is")


def tools_of(actions: Iterable[dict[str, Any]], *, where: str) -> Iterator[ToolSpec]:
    """Yield the actions as HTTP tools (CONTRACT.md decision 78); Problem 400 for one that is none.

    Problem 501 for one that names an integration of Langdock's.
    """
    for number, action in enumerate(actions):
        _lacks("actionId" in action and "url" not in action, f"{where}[{number}]: Langdock's own integrations are")
        known = {name: action[name] for name in HttpAction.model_fields if name in action}
        try:
            yield HttpAction.model_validate({**known, "type": "http"})
        except ValidationError as exc:
            first = exc.errors()[0]
            place = ".".join(map(str, first["loc"]))
            at = f"{where}[{number}]" + (f".{place}" if place else "")
            raise Problem(Kind.BAD_REQUEST, f"{at}: {first['msg']}", code="invalid_request", param=at) from exc


def _lacks(value: Any, what: str) -> None:
    if value:
        raise Problem(Kind.NOT_IMPLEMENTED, f"{what} not supported here; leave it out", code="not_implemented")


def _job(body: CompletionRequest, **fields: Any) -> InvokeJob:
    return InvokeJob(
        output=body.output,
        max_steps=body.maxSteps,
        keep_thread=False,
        tell="stream" if body.stream else "turn",
        **fields,
    )


def _conversation(said: list[RequestMessage], leading: list[UUID], attached: Attached) -> tuple[Message, ...]:
    """Return the messages as a provider takes them; the assistant's own attachments lead the first user's message."""
    messages: list[Message] = []
    waiting: list[ToolCall] = []
    left = list(leading)
    for each in said:
        match each.role:
            case "user":
                parts = attached.parts([*left, *(each.attachmentIds or ())])
                left.clear()
                messages.append(with_parts(Message(role="user", content=each.content), parts))
            case "assistant":
                message = _from_assistant(each.content)
                waiting += message.tool_calls
                messages.append(message)
            case "tool":
                messages += _from_tool(each.content, waiting)
    if left:
        messages.insert(0, with_parts(Message(role="user", content=""), attached.parts(left)))
    return tuple(messages)


def _from_assistant(content: str) -> Message:
    parts = _parts_in(content, "tool-call")
    if parts is None:
        return Message(role="assistant", content=content)
    text = "".join(str(part.get("text", "")) for part in parts if part.get("type") == "text")
    calls = tuple(
        ToolCall(
            id=str(part.get("toolCallId") or f"call_{number}"),
            name=str(part.get("toolName") or "tool"),
            arguments=json.dumps(part.get("args", part.get("input")) or {}, ensure_ascii=False),
        )
        for number, part in enumerate(parts)
        if part.get("type") == "tool-call"
    )
    return Message(role="assistant", content=text or None, tool_calls=calls)


def _from_tool(content: str, waiting: list[ToolCall]) -> Iterator[Message]:
    parts = _parts_in(content, "tool-result")
    results = [(None, content)] if parts is None else [_result_in(part) for part in parts]
    for call_id, text in results:
        call = next((call for call in waiting if call_id in (None, call.id)), None)
        if call is None:
            yield Message(role="user", content=f"[Result of a tool]\n{text}")
        else:
            waiting.remove(call)
            yield Message(role="tool", content=text, tool_call_id=call.id, name=call.name)


def _result_in(part: dict[str, Any]) -> tuple[str | None, str]:
    result = part.get("result", part.get("output"))
    text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)
    return (str(part["toolCallId"]) if part.get("toolCallId") else None), text


def _parts_in(content: str, kind: str) -> list[dict[str, Any]] | None:
    """Return the parts that the text holds as JSON, None unless one of them is of this kind."""
    if not content.startswith("[") or kind not in content:
        return None
    try:
        parts = json.loads(content)
    except (ValueError, RecursionError):
        return None
    if not all(isinstance(part, dict) for part in parts) or not any(part.get("type") == kind for part in parts):
        return None
    return parts  # type: ignore[no-any-return]
