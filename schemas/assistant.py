"""The configuration of an assistant, as an assistant file or an API call gives it."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from schemas import template
from schemas.errors import InputError
from schemas.output import OutputSpec

_SLUG = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"

# `workspace/project/assistant`
Address = Annotated[str, StringConstraints(pattern=rf"^{_SLUG}/{_SLUG}/{_SLUG}$")]
# `production`, `staging`, …: a named pointer to a version
Environment = Annotated[str, StringConstraints(pattern=rf"^{_SLUG}$")]


class TemplateMessage(BaseModel):
    """One message of an assistant's template; its content is Handlebars."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Literal["system", "user", "assistant"]
    content: str

    @field_validator("content")
    @classmethod
    def _content_parses(cls, content: str) -> str:
        template.check(content)
        return content


class AssistantConfig(BaseModel):
    """One version of an assistant.

    `model` None means the default model of the installation (`ASSISTQ_MODEL`).
    `max_tokens` bounds the completion of one provider call. With `strict_variables` a
    variable that the template prints and the job does not give fails the job before
    anything is paid for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    assistant: Address
    environment: Environment = "production"
    description: str = Field(default="", max_length=256)
    model: str | None = Field(default=None, min_length=1, max_length=200)
    instructions: str = Field(default="", max_length=16_384)
    template: tuple[TemplateMessage, ...] = ()
    output: OutputSpec | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    max_tokens: int | None = Field(default=None, ge=1)
    seed: int | None = None
    stop: tuple[str, ...] | None = Field(default=None, min_length=1)
    strict_variables: bool = True

    @field_validator("instructions")
    @classmethod
    def _instructions_parse(cls, instructions: str) -> str:
        template.check(instructions)
        return instructions

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.instructions and not self.template:
            raise ValueError("an assistant needs `instructions`, a `template`, or both")
        return self

    @property
    def workspace(self) -> str:
        """Return the workspace, the first part of the address."""
        return workspace_of(self.assistant)


def checked_workspace(name: str) -> str:
    """Return a workspace's name as it is; InputError if none can be called so."""
    if not re.fullmatch(_SLUG, name):
        raise InputError(f"'{name}' is no workspace", mend="name the first part of an assistant's address")
    return name


def workspace_of(address: str) -> str:
    """Return the workspace of an assistant's address."""
    return address.split("/", 1)[0]
