"""The configuration of an assistant, as an assistant file or an API call gives it."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from schemas import template
from schemas.chat import Message, Part, TextPart
from schemas.errors import InputError
from schemas.output import OutputSpec
from schemas.parameters import Parameters
from schemas.tool import ToolSpec

_SLUG = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"

# `workspace/project/assistant`
Address = Annotated[str, StringConstraints(pattern=rf"^{_SLUG}/{_SLUG}/{_SLUG}$")]
# `production`, `staging`, …: a named pointer to a version
Environment = Annotated[str, StringConstraints(pattern=rf"^{_SLUG}$")]
Workspace = Annotated[str, StringConstraints(pattern=rf"^{_SLUG}$")]

# openai: any OpenAI-compatible chat-completions server; the others host assistants of their own.
ProviderKind = Literal["openai", "langdock", "langtail", "agent"]

DEFAULT_MAX_STEPS = 10
DEFAULT_MAX_REPAIRS = 2
INSTRUCTIONS_MAX_CHARS = 16_384
DESCRIPTION_MAX_CHARS = 256
INLINE_NAME_MAX_CHARS = 64
# What stands behind the workspace in the address that all its inline assistants have.
INLINE_PATH = "/inline/inline"


class TemplateMessage(BaseModel):
    """One message of an assistant's template; its text, or its text parts, are Handlebars."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Literal["system", "user", "assistant"]
    content: str | tuple[Part, ...]

    @field_validator("content")
    @classmethod
    def _content_parses(cls, content: str | tuple[Part, ...]) -> str | tuple[Part, ...]:
        for source in _texts(content):
            template.check(source)
        return content

    @property
    def texts(self) -> tuple[str, ...]:
        """Return the templates of the message: its text, or that of its text parts."""
        return _texts(self.content)


class JobTemplateMessage(Message):
    """One message of a template that a job brings in the place of the assistant's.

    Its text, or its text parts, are Handlebars; whether they must parse depends on the job
    (InvokeJob.strict_variables). Unlike a stored template it may show whole rounds of tool calls.
    """

    @property
    def texts(self) -> tuple[str, ...]:
        """Return the templates of the message: its text, or that of its text parts."""
        return () if self.content is None else _texts(self.content)


class AssistantConfig(Parameters):
    """One version of an assistant.

    `model` None means the default model of the installation (`ASSISTQ_MODEL`).
    `max_tokens` bounds the completion of one provider call. `variables` are defaults that a
    job's own overwrite. With `strict_variables` a variable that the template prints and
    nobody gives fails the job before anything is paid for. `max_steps` bounds the provider
    calls of one job, `max_repairs` those that only mend an output, `history_tokens` what of
    a thread is sent again.

    `provider_assistant` is the assistant's id at a service that hosts assistants: Langdock's
    assistant id, Langtail's `workspace/project/assistant/environment`, an agent's id.
    `structured_output` says how an output spec is asked for: in the provider's native way,
    by instruction, or native until the provider refuses it. `tool_calling: schema` asks for
    tool calls through a JSON Schema, for models without tools of their own.
    """

    assistant: Address
    environment: Environment = "production"
    max_tokens: int | None = Field(default=None, ge=1)
    description: str = Field(default="", max_length=DESCRIPTION_MAX_CHARS)
    instructions: str = Field(default="", max_length=INSTRUCTIONS_MAX_CHARS)
    template: tuple[TemplateMessage, ...] = ()
    variables: dict[str, Any] = Field(default_factory=dict)
    output: OutputSpec | None = None
    strict_variables: bool = True
    max_steps: int = Field(default=DEFAULT_MAX_STEPS, ge=1, le=20)
    max_repairs: int = Field(default=DEFAULT_MAX_REPAIRS, ge=0, le=10)
    history_tokens: int | None = Field(default=None, ge=1)
    structured_output: Literal["auto", "native", "instructed"] = "auto"
    tool_calling: Literal["native", "schema"] = "native"
    provider: ProviderKind = "openai"
    provider_assistant: str | None = Field(default=None, min_length=1, max_length=512)

    @field_validator("instructions")
    @classmethod
    def _instructions_parse(cls, instructions: str) -> str:
        template.check(instructions)
        return instructions

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.provider == "openai":
            if self.provider_assistant is not None:
                raise ValueError("`provider_assistant` needs a `provider` that hosts assistants")
            if not self.instructions and not self.template and not self.assistant.endswith(INLINE_PATH):
                raise ValueError("an assistant needs `instructions`, a `template`, or both")
        elif self.provider_assistant is None and (self.provider != "langdock" or not self.instructions):
            raise ValueError(f"provider {self.provider} needs `provider_assistant`, the assistant's id there")
        return self

    @property
    def workspace(self) -> str:
        """Return the workspace, the first part of the address."""
        return workspace_of(self.assistant)

    @property
    def needs_a_message(self) -> bool:
        """Return whether each job has to bring a message: nothing else speaks. Langtail holds a template itself."""
        return not self.template and self.provider != "langtail"


class InlineAssistant(BaseModel):
    """An assistant that a job brings along instead of naming a stored one (Langdock's temporary assistant).

    Without `instructions` the job's own messages say all, as in a plain chat completion.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    workspace: Workspace
    name: str = Field(min_length=1, max_length=INLINE_NAME_MAX_CHARS)
    instructions: str = Field(default="", max_length=INSTRUCTIONS_MAX_CHARS)
    description: str = Field(default="", max_length=DESCRIPTION_MAX_CHARS)
    temperature: float | None = Field(default=None, ge=0, le=1)
    model: str | None = Field(default=None, min_length=1, max_length=200)
    tools: tuple[ToolSpec, ...] | None = None

    @field_validator("instructions")
    @classmethod
    def _instructions_parse(cls, instructions: str) -> str:
        template.check(instructions)
        return instructions

    def to_config(self) -> AssistantConfig:
        """Return it as a configuration that has no address of its own."""
        return AssistantConfig(
            assistant=self.workspace + INLINE_PATH,
            description=self.description,
            instructions=self.instructions,
            temperature=self.temperature,
            model=self.model,
            tools=self.tools,
        )


def checked_workspace(name: str) -> str:
    """Return a workspace's name as it is; InputError if none can be called so."""
    if not re.fullmatch(_SLUG, name):
        raise InputError(f"'{name}' is no workspace", mend="name the first part of an assistant's address")
    return name


def workspace_of(address: str) -> str:
    """Return the workspace of an assistant's address."""
    return address.split("/", 1)[0]


def _texts(content: str | tuple[Part, ...]) -> tuple[str, ...]:
    return (
        (content,) if isinstance(content, str) else tuple(part.text for part in content if isinstance(part, TextPart))
    )


def checked_environment(name: str) -> str:
    """Return the name of an environment as it is; InputError if it cannot be one."""
    if re.fullmatch(_SLUG, name) is None:
        raise InputError(f"'{name}' is no name of an environment", mend="use letters, digits, `_`, `.` and `-`")
    return name
