"""What OpenAI's chat requests are made of: messages, tools and the choice of a tool, and what they are to us."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, Self, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from producer.gateway.faults import faults_in, problem_of
from producer.gateway.problem import Fault, Kind, Problem
from schemas.chat import ImagePart, Message, Part, Role, TextPart, ToolCall
from schemas.job import InvokeJob
from schemas.tool import ClientTool, ToolChoice, ToolName


class _Given(BaseModel):
    # What a vendor adds is ignored by all of them.
    model_config = ConfigDict(frozen=True, extra="ignore")


class ImageAddress(_Given):
    """Where an image is."""

    url: str = Field(min_length=1)
    detail: Literal["auto", "low", "high"] = "auto"


class ImageContent(_Given):
    """A part of a message that is an image."""

    type: Literal["image_url"]
    image_url: ImageAddress


class TextContent(_Given):
    """A part of a message that is text."""

    type: Literal["text"]
    text: str


class RefusalContent(_Given):
    """A part of an assistant's message that says that it refuses."""

    type: Literal["refusal"]
    refusal: str


Content = Annotated[TextContent | ImageContent | RefusalContent, Field(discriminator="type")]


class FunctionCall(_Given):
    """The function of a tool call; `arguments` is JSON text, which may be invalid, for a model wrote it."""

    name: str
    arguments: str


class MadeToolCall(_Given):
    """A tool call that an assistant made."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(_Given):
    """One message, in OpenAI's form; who takes only some roles says so itself."""

    role: str
    content: str | Annotated[list[Content], Field(fail_fast=True)] | None = None
    name: str | None = None
    tool_calls: Annotated[list[MadeToolCall], Field(fail_fast=True)] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None

    def to_message(self) -> Message:
        """Return it as the flow's; ValueError if its parts do not fit its role.

        `developer` is `system`. What a user says keeps its parts, all others' become one text; a refusal is text.
        """
        role = cast("Role", "system" if self.role == "developer" else self.role)
        content = self._content(keeps_parts=role == "user")
        return Message(
            role=role,
            content=self.refusal if content is None else content,
            name=self.name,
            tool_calls=tuple(
                ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments)
                for call in self.tool_calls or ()
            ),
            tool_call_id=self.tool_call_id,
        )

    def _content(self, *, keeps_parts: bool) -> str | tuple[Part, ...] | None:
        if self.content is None or isinstance(self.content, str):
            return self.content
        if not keeps_parts and any(isinstance(part, ImageContent) for part in self.content):
            raise ValueError(f"a {self.role} message cannot hold an image; send it in a user message")
        if keeps_parts and any(isinstance(part, RefusalContent) for part in self.content):
            raise ValueError("only an assistant's message can hold a refusal")
        if keeps_parts:
            return tuple(_part(part) for part in self.content)
        return "".join(_text(part) for part in self.content)


class Function(_Given):
    """A function that the caller can run; with `strict` its arguments are to fit `parameters`, a JSON Schema."""

    name: ToolName
    description: str | None = Field(default=None, max_length=4096)
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionTool(_Given):
    """A tool that the caller runs. Nothing that a caller sends runs here."""

    type: Literal["function"]
    function: Function


class StreamOptions(_Given):
    """What a stream tells beside its parts."""

    include_usage: bool | None = None


class ChatRequest(_Given):
    """What every request for a chat completion may have."""

    messages: list[ChatMessage] = Field(min_length=1, fail_fast=True)
    temperature: float | None = Field(default=None, ge=0, le=2)
    max_tokens: int | None = Field(default=None, ge=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: str | Annotated[list[str], Field(min_length=1, max_length=16)] | None = None
    n: int | None = Field(default=None, ge=1, le=128)
    tools: list[FunctionTool] | None = Field(default=None, max_length=128)
    tool_choice: ToolChoice | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _options_of_a_stream_need_one(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("`stream_options` is only for `stream: true`")
        return self

    @property
    def include_usage(self) -> bool:
        """Return whether a stream is to tell the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


def messages_of(given: Sequence[ChatMessage], *, kind: Kind) -> tuple[Message, ...]:
    """Return the messages as the flow's; a Problem of this kind for one that makes no sense."""
    messages = []
    for at, message in enumerate(given):
        try:
            messages.append(message.to_message())
        except ValueError as exc:
            raise _refused(exc, kind, "messages", at) from exc
    return tuple(messages)


def client_tools(given: Iterable[FunctionTool] | None, *, kind: Kind) -> tuple[ClientTool, ...] | None:
    """Return the tools that the caller runs, None if it named none; a Problem of this kind for one that cannot be."""
    if given is None:
        return None
    tools = []
    for at, tool in enumerate(given):
        told = tool.function.model_dump(exclude_none=True)
        try:
            tools.append(ClientTool(type="function", **told))
        except ValidationError as exc:
            raise _refused(exc, kind, "tools", at, "function") from exc
    return tuple(tools)


def job_of(kind: Kind, /, **fields: Any) -> InvokeJob:
    """Return the job of these fields; a Problem of this kind, which names the field, if there can be none."""
    try:
        return InvokeJob(**fields)
    except ValidationError as exc:
        raise _refused(exc, kind) from exc


def callers_tools(*tools: Any) -> frozenset[str]:
    """Return the names of those of the tools that the caller runs."""
    return frozenset(tool.name for tool in tools if isinstance(tool, ClientTool))


def _part(part: TextContent | ImageContent | RefusalContent) -> Part:
    if isinstance(part, ImageContent):
        return ImagePart.model_validate(part.model_dump())
    return TextPart(text=_text(part))


def _text(part: TextContent | ImageContent | RefusalContent) -> str:
    match part:
        case TextContent():
            return part.text
        case RefusalContent():
            return part.refusal
        case _:
            return ""


def _refused(error: ValueError, kind: Kind, *place: str | int) -> Problem:
    """Return the problem of what did not fit our own models."""
    if isinstance(error, ValidationError):
        return problem_of(faults_in(error, *place), kind=kind)
    return problem_of([Fault(where=("body", *place), what=str(error))], kind=kind)
