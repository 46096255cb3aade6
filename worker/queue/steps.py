"""What a job's journal holds: its finished steps, oldest first."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from schemas.chat import Usage
from schemas.result import JobResult


class ReplyStep(BaseModel):
    """A provider's reply: paid for, and so never asked for again."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["reply"] = "reply"
    content: str
    finish_reason: str | None
    refusal: str | None = None
    model: str
    usage: Usage


class ResultStep(BaseModel):
    """How the job ended, kept while SQL was away."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["result"] = "result"
    result: JobResult


Step = Annotated[ReplyStep | ResultStep, Field(discriminator="kind")]

_ADAPTER: TypeAdapter[ReplyStep | ResultStep] = TypeAdapter(Step)


def parse_step(text: bytes | str) -> ReplyStep | ResultStep:
    """Read one entry of a journal."""
    return _ADAPTER.validate_json(text)
