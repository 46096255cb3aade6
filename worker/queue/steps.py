"""What a job's journal holds: its finished steps, oldest first."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from schemas.assistant import ProviderKind
from schemas.chat import Message, ToolCall, Usage
from schemas.result import JobResult


class ReplyStep(BaseModel):
    """A provider's reply: paid for, and so never asked for again.

    `usage` is the provider's count, nothing where it does not count; `cost_nano` is what it cost at the
    prices of that moment (schemas/money.py), or could cost at most where the provider does not count. The last
    four fields are a hosted assistant's, see providers/base.py ChatReply.
    """

    model_config = ConfigDict(frozen=True)

    kind: Literal["reply"] = "reply"
    provider: ProviderKind = "openai"
    content: str
    finish_reason: str | None
    refusal: str | None = None
    model: str
    usage: Usage
    cost_nano: int = 0
    tool_calls: tuple[ToolCall, ...] = ()
    alternatives: tuple[str, ...] = ()
    thread_ref: str | None = None
    exchanged: tuple[Message, ...] = ()
    output: Any = None
    retrieved: tuple[dict[str, Any], ...] = ()

    def message(self) -> Message:
        """Return the reply as a message of the conversation."""
        return Message(
            role="assistant",
            content=self.content if self.content or not self.tool_calls else None,
            tool_calls=self.tool_calls,
        )


class ToolStep(BaseModel):
    """The answer to one tool call of the last reply, its `position`-th from 0: that call is not made again.

    The calls of a reply run at once, so their answers stand in the order in which they came.
    """

    model_config = ConfigDict(frozen=True)

    kind: Literal["tool"] = "tool"
    position: int
    answer: Message


class ResultStep(BaseModel):
    """How the job ended, kept while SQL was away."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["result"] = "result"
    result: JobResult


AnyStep = ReplyStep | ToolStep | ResultStep
Step = Annotated[AnyStep, Field(discriminator="kind")]

_ADAPTER: TypeAdapter[AnyStep] = TypeAdapter(Step)


def parse_step(text: bytes | str) -> AnyStep:
    """Read one entry of a journal."""
    return _ADAPTER.validate_json(text)
