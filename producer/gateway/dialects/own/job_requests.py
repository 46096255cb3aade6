"""Jobs, inline assistants and stored ones as a caller of our own API may ask for them.

They are those of `schemas` without what the server says: the id of a job, and the workspace, which is the key's.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, ValidationError, model_validator
from pydantic.json_schema import SkipJsonSchema

from producer.gateway.access import Caller, refuse_unshared
from producer.gateway.faults import faults_in, problem_of
from producer.gateway.problem import Kind, Problem
from producer.gateway.tools import checked_tools
from schemas.assistant import AssistantConfig, InlineAssistant
from schemas.job import InvokeJob

_SLUG = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"

# `project/assistant`, or with the key's workspace before it.
AssistantName = Annotated[str, StringConstraints(pattern=rf"^({_SLUG}/)?{_SLUG}/{_SLUG}$")]


class InlineRequest(InlineAssistant):
    """An assistant that a job brings along; it belongs to the key's workspace."""

    workspace: SkipJsonSchema[Literal[""]] = ""


class JobRequest(InvokeJob):
    """A job to enqueue: exactly one of `assistant` and `inline` says what it is for.

    `assistant` is `project/assistant`, or an address with the key's workspace before that.
    """

    id: SkipJsonSchema[None] = None
    assistant: AssistantName | None = None
    inline: InlineRequest | None = None

    @model_validator(mode="after")
    def _names_one_assistant(self) -> Self:
        # A job of a batch may leave it to the batch: `to_job` sees to it.
        return self

    def to_job(self, caller: Caller, *, default: str | None = None, where: tuple[str | int, ...] = ()) -> InvokeJob:
        """Return the job in the caller's workspace, for the assistant `default` if it names none itself.

        Problem 400 if it names none or two, 403 for one that is not shared with the key.
        """
        values: dict[str, Any] = {name: getattr(self, name) for name in self.model_fields_set}
        values.pop("id", None)
        assistant = values.pop("assistant", None)
        inline = values.pop("inline", None)
        if inline is not None:
            brought = {name: getattr(inline, name) for name in inline.model_fields_set - {"workspace"}}
            if inline.tools is not None:
                brought["tools"] = checked_tools(inline.tools)
            inline = InlineAssistant(workspace=caller.workspace, **brought)
        elif assistant is None:
            assistant = default
        if self.tools is not None:
            values["tools"] = checked_tools(self.tools)
        try:
            job = InvokeJob(
                assistant=None if assistant is None else address_of(assistant, caller), inline=inline, **values
            )
        except ValidationError as exc:
            raise invalid(exc, *where) from exc
        refuse_unshared(job.address, caller)
        return job


class AssistantDefinition(AssistantConfig):
    """A version of an assistant to store; its path says which assistant it is of."""

    assistant: SkipJsonSchema[Literal[""]] = ""
    max_tokens: int | None = Field(default=None, ge=1)

    def to_config(self, address: str) -> AssistantConfig:
        """Return it under this address; Problem 400 for tools that cannot be brought over HTTP."""
        values = {name: getattr(self, name) for name in self.model_fields_set - {"assistant"}}
        if self.tools is not None:
            values["tools"] = checked_tools(self.tools)
        try:
            return AssistantConfig(assistant=address, **values)
        except ValidationError as exc:
            raise invalid(exc) from exc


def address_of(name: str, caller: Caller) -> str:
    """Return the address of an assistant that was named with or without its workspace; 404 for another workspace's."""
    address = name if name.count("/") == 2 else f"{caller.workspace}/{name}"
    if not caller.sees(address):
        raise unknown_assistant(name)
    return address


def unknown_assistant(name: str, what: str | None = None) -> Problem:
    """Return the problem of an assistant that the caller does not know, or of a version or environment of it."""
    return Problem(Kind.NOT_FOUND, what or f"assistant '{name}' is not known", code="assistant_unknown")


def invalid(error: ValidationError, *where: str | int) -> Problem:
    """Return the problem of a body, or a part of one, that breaks its model."""
    return problem_of(faults_in(error, *where))
