"""Provider-neutral messages, tool calls and token counts."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

Role = Literal["system", "user", "assistant", "tool"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    type: str

    @model_serializer(mode="wrap")
    def _says_its_type(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Keep the type where defaults are left out: without it, no reader can tell the parts apart."""
        return {"type": self.type, **handler(self)}


class TextPart(_Part):
    """A part of a message that is text."""

    type: Literal["text"] = "text"
    text: str


class ImageUrl(BaseModel):
    """Where an image is: an http(s) URL that the provider fetches, or a data URL."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = Field(min_length=1)
    detail: Literal["auto", "low", "high"] = "auto"


class ImagePart(_Part):
    """A part of a message that is an image."""

    type: Literal["image_url"] = "image_url"
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class ToolCall(BaseModel):
    """One call of a tool that a model asked for; `arguments` is the model's JSON text, which may be invalid."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    name: str
    arguments: str

    @model_validator(mode="before")
    @classmethod
    def _from_openai(cls, value: Any) -> Any:
        """Take OpenAI's form too: `{id, type: "function", function: {name, arguments}}`."""
        if isinstance(value, dict) and isinstance(value.get("function"), dict):
            function = value["function"]
            return {"id": value.get("id"), "name": function.get("name"), "arguments": function.get("arguments")}
        return value

    def to_openai(self) -> dict[str, Any]:
        """Return the call in OpenAI's form."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


class Message(BaseModel):
    """One message of a conversation; its content is data and is never rendered as a template.

    An assistant's message may carry tool calls and then needs no content. A tool's message
    names the call that it answers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Role
    content: str | Annotated[tuple[Part, ...], Field(fail_fast=True)] | None = None
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = Field(default=(), fail_fast=True)
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _parts_fit_the_role(self) -> Self:
        if self.tool_calls and self.role != "assistant":
            raise ValueError(f"a {self.role} message cannot carry tool_calls")
        if (self.role == "tool") != (self.tool_call_id is not None):
            raise ValueError("a tool message, and no other, needs tool_call_id")
        if self.content is None and not self.tool_calls:
            raise ValueError(f"a {self.role} message needs content")
        return self

    @property
    def text(self) -> str:
        """Return the text of the content, without images."""
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        return "".join(part.text for part in self.content if isinstance(part, TextPart))

    def to_openai(self) -> dict[str, Any]:
        """Return the message in OpenAI's form, with absent fields left out."""
        message: dict[str, Any] = {"role": self.role}
        if isinstance(self.content, tuple):
            message["content"] = [part.model_dump() for part in self.content]
        else:
            message["content"] = self.content
        if self.name is not None:
            message["name"] = self.name
        if self.tool_calls:
            message["tool_calls"] = [call.to_openai() for call in self.tool_calls]
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        return message


class Usage(BaseModel):
    """Tokens that a provider counted, summed over the calls it stands for."""

    model_config = ConfigDict(frozen=True)

    prompt_tokens: int = Field(default=0, ge=0)
    completion_tokens: int = Field(default=0, ge=0)

    def __add__(self, other: Usage) -> Usage:
        """Return the sum of both counts."""
        return Usage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
        )

    @property
    def total_tokens(self) -> int:
        """Return prompt plus completion, which is what a provider's token limit counts."""
        return self.prompt_tokens + self.completion_tokens
