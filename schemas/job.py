"""A job: one invocation of one assistant, and the record of it that travels to the workers."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from schemas import template
from schemas.assistant import (
    INLINE_PATH,
    Address,
    Environment,
    InlineAssistant,
    JobTemplateMessage,
    TemplateMessage,
    workspace_of,
)
from schemas.chat import Message
from schemas.errors import InputError
from schemas.outcome import Code
from schemas.output import OutputSpec
from schemas.parameters import Parameters
from schemas.webhook import checked_url

# Ids end in Redis keys, URLs and file columns: no white space, no control characters.
Identifier = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@-]{0,199}$")]
MetadataValue = str | int | float | bool
Priority = Literal["interactive", "batch"]
# What the caller is told: how the job ended; the messages of its turn too; each token too, as it comes.
Tell = Literal["end", "turn", "stream"]

METADATA_KEY_MAX_CHARS = 64
# How Redis's scripts name priorities (schemas/lines.lua).
PRIORITY_MARKS: dict[Priority, str] = {"interactive": "I", "batch": "B"}


class InvokeJob(Parameters):
    """One invocation of one assistant: what an application or a row of a file asks for.

    Exactly one of `assistant`, a stored one's address, and `inline`. `id` is the idempotency
    key; without one, a new id is made. `custom_id` is the caller's own name for the row and
    is only carried along. `messages` come after the assistant's template and the thread.
    The parameters, `template`, `output` and `max_steps` override the assistant's. Of one
    workspace's jobs those with `priority` `interactive` run first; without one a single job is
    interactive, and a batch's is `batch`.

    `webhook` is told how the job ended, once it has. `tell` is what its caller is told beside that:
    `turn` the messages of its turn too, in the result, `stream` also each token as it comes (schemas/stream.py).

    A job without a `thread_id` begins a thread of its own unless `keep_thread` is False. `strict_variables`
    overrides the assistant's: with False a variable that is missing renders empty, and a template of the job
    that does not parse is sent as it is.

    With `do_not_record` (also `doNotRecord`) the job's row keeps ids, times, usage and
    status, and no content; its thread keeps the messages if the job names one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    assistant: Address | None = None
    inline: InlineAssistant | None = None
    environment: Environment = "production"
    version: int | None = Field(default=None, ge=1)
    id: Identifier | None = None
    custom_id: str | None = Field(default=None, max_length=512)
    thread_id: Identifier | None = None
    variables: dict[str, Any] = Field(default_factory=dict)
    messages: tuple[Message, ...] = Field(default=(), fail_fast=True)
    template: Annotated[tuple[JobTemplateMessage, ...], Field(fail_fast=True)] | None = None
    output: OutputSpec | None = None
    max_steps: int | None = Field(default=None, ge=1, le=20)
    metadata: dict[str, MetadataValue] = Field(default_factory=dict)
    priority: Priority | None = None
    do_not_record: bool = Field(default=False, alias="doNotRecord")
    webhook: str | None = Field(default=None, max_length=2048)
    tell: Tell = "end"
    keep_thread: bool = True
    strict_variables: bool | None = None

    @field_validator("template", mode="before")
    @classmethod
    def _takes_an_assistants_template(cls, messages: Any) -> Any:
        if not isinstance(messages, list | tuple):
            return messages
        return [each.model_dump() if isinstance(each, TemplateMessage) else each for each in messages]

    @field_validator("webhook")
    @classmethod
    def _webhook_is_an_address(cls, webhook: str | None) -> str | None:
        try:
            return None if webhook is None else checked_url(webhook)
        except InputError as exc:
            raise ValueError(str(exc)) from exc

    @field_validator("metadata")
    @classmethod
    def _metadata_keys_are_short(cls, metadata: dict[str, MetadataValue]) -> dict[str, MetadataValue]:
        for key in metadata:
            if not 0 < len(key) <= METADATA_KEY_MAX_CHARS:
                raise ValueError(f"metadata key {key[:80]!r} must have 1 to {METADATA_KEY_MAX_CHARS} characters")
        return metadata

    @field_validator("variables", "metadata")
    @classmethod
    def _can_be_written_as_json(cls, values: dict[str, Any]) -> dict[str, Any]:
        try:
            json.dumps(values, allow_nan=False, ensure_ascii=False).encode()
        except (TypeError, ValueError, RecursionError) as exc:
            raise ValueError(f"cannot be written as JSON: {exc}") from exc
        return values

    @model_validator(mode="after")
    def _names_one_assistant(self) -> Self:
        if (self.assistant is None) == (self.inline is None):
            raise ValueError("a job needs exactly one of `assistant` (an address) and `inline`")
        return self

    @model_validator(mode="after")
    def _template_parses(self) -> Self:
        if self.strict_variables is not False:
            try:
                template.refuse_too_many_tags(source for message in self.template or () for source in message.texts)
            except template.TemplateError as exc:
                raise ValueError(f"template: {exc}") from exc
            for position, message in enumerate(self.template or ()):
                for source in message.texts:
                    _check(source, position)
        return self

    @property
    def workspace(self) -> str:
        """Return the tenant that the job belongs to."""
        return self.inline.workspace if self.inline else workspace_of(self.address)

    @property
    def address(self) -> str:
        """Return the assistant's address; an inline one has a common address in its workspace."""
        return self.assistant or self.workspace + INLINE_PATH

    @property
    def route(self) -> str:
        """Return what decides which lane the job meets: its assistant, and the model if the job names one."""
        which = self.environment if self.version is None else self.version
        model = self.model or (self.inline.model if self.inline else None)
        return f"{self.address}@{which}" + (f"#{model}" if model else "")


def _check(source: str, position: int) -> None:
    try:
        template.check(source)
    except template.TemplateError as exc:
        raise ValueError(f"template[{position}].content: {exc}") from exc


class Rejection(BaseModel):
    """Why a row of a file never became a job that could run (`--skip-bad-rows`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    code: Code
    error: str


class JobRecord(BaseModel):
    """What a producer writes to Redis for one job.

    `row` is the position in the batch, from 0. A record with a `rejection` ends as failed
    without a provider call, so that a skipped row has its place in the results. Where a key that
    only some assistants are shared with enqueued it, `within` are these: it goes on with no
    conversation of another.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Identifier
    job: InvokeJob
    batch_id: Identifier | None = None
    row: int | None = Field(default=None, ge=0)
    rejection: Rejection | None = None
    within: tuple[Address, ...] | None = None

    @property
    def priority(self) -> Priority:
        """Return the job's priority, else what suits the way in which it was enqueued."""
        return self.job.priority or ("interactive" if self.batch_id is None else "batch")

    @property
    def line(self) -> str:
        """Return the line that the job waits in: jobs of one batch and priority that will meet the same lane."""
        return f"{PRIORITY_MARKS[self.priority]}|{self.batch_id or ''}|{self.job.route}"
