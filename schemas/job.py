"""A job: one invocation of one assistant, and the record of it that travels to the workers."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from schemas.assistant import Address, Environment, workspace_of
from schemas.chat import Message
from schemas.outcome import Code
from schemas.output import OutputSpec

# Ids end in Redis keys, URLs and file columns: no white space, no control characters.
Identifier = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@-]{0,199}$")]
MetadataValue = str | int | float | bool

METADATA_KEY_MAX_CHARS = 64


class InvokeJob(BaseModel):
    """One invocation of one assistant: what an application or a row of a file asks for.

    `id` is the idempotency key; without one, a new id is made. `custom_id` is the caller's
    own name for the row and is only carried along. `messages` come after the assistant's
    template and the thread. `output` replaces the assistant's output spec.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    assistant: Address
    environment: Environment = "production"
    version: int | None = Field(default=None, ge=1)
    id: Identifier | None = None
    custom_id: str | None = Field(default=None, max_length=512)
    thread_id: Identifier | None = None
    variables: dict[str, Any] = Field(default_factory=dict)
    messages: tuple[Message, ...] = ()
    output: OutputSpec | None = None
    metadata: dict[str, MetadataValue] = Field(default_factory=dict)

    @field_validator("metadata")
    @classmethod
    def _metadata_keys_are_short(cls, metadata: dict[str, MetadataValue]) -> dict[str, MetadataValue]:
        for key in metadata:
            if not 0 < len(key) <= METADATA_KEY_MAX_CHARS:
                raise ValueError(f"metadata key {key[:80]!r} must have 1 to {METADATA_KEY_MAX_CHARS} characters")
        return metadata

    @property
    def workspace(self) -> str:
        """Return the tenant that the job belongs to."""
        return workspace_of(self.assistant)

    @property
    def line(self) -> str:
        """Return the line that the job waits in: jobs of one assistant and version share one."""
        return f"{self.assistant}@{self.environment if self.version is None else self.version}"


class Rejection(BaseModel):
    """Why a row of a file never became a job that could run (`--skip-bad-rows`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    code: Code
    error: str


class JobRecord(BaseModel):
    """What a producer writes to Redis for one job.

    `row` is the position in the batch, from 0. A record with a `rejection` ends as failed
    without a provider call, so that a skipped row has its place in the results.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Identifier
    job: InvokeJob
    batch_id: Identifier | None = None
    row: int | None = Field(default=None, ge=0)
    rejection: Rejection | None = None
