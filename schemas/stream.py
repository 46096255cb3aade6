"""What is told of a job while it runs, to a caller who asked for each token as it comes (`tell: stream`).

A worker writes these to the Redis stream of the job (names.parts), one JSON text a field
`part`, and publishes on names.done_channel that there is more. How the job ended stands in its
result, which comes after all of them.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from schemas.chat import Usage


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class Begun(_Part):
    """A worker took the job up under this epoch; `steps` stand in its journal and are not said again.

    What was told of a step from `steps` on, under an earlier epoch, is void: its worker died, or its provider
    broke off.
    """

    type: Literal["begun"] = "begun"
    epoch: int
    steps: int
    model: str
    thread_id: str | None = None


class TextPart(_Part):
    """More text of the reply that becomes the journal's step `step`; `index` is its choice."""

    type: Literal["text"] = "text"
    step: int
    text: str
    index: int = 0


class ToolCallPart(_Part):
    """More of a tool call of that reply: its id and name come first, once, then pieces of its arguments (JSON)."""

    type: Literal["tool_call"] = "tool_call"
    step: int
    position: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""
    index: int = 0


class ToolResultPart(_Part):
    """What a tool answered to the call of this id."""

    type: Literal["tool_result"] = "tool_result"
    step: int
    call_id: str
    name: str | None
    content: str


class StepEnded(_Part):
    """The reply is whole and in the journal."""

    type: Literal["step_ended"] = "step_ended"
    step: int
    finish_reason: str | None
    usage: Usage


StreamPart = Annotated[Begun | TextPart | ToolCallPart | ToolResultPart | StepEnded, Field(discriminator="type")]

PART_FIELD = "part"
STREAM_PART: TypeAdapter[StreamPart] = TypeAdapter(StreamPart)
