"""The result of a job, as `handle.result()`, the results file and a webhook show it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from schemas.chat import Message, ToolCall
from schemas.outcome import Status


class JobResult(BaseModel):
    """How a job ended.

    `output` is the validated value, or the reply's text where no output spec was given;
    None unless the job succeeded. Tokens are the provider's own count, summed over all
    `requests` that the job made; `cost_nano` is what they cost (schemas/money.py),
    0 without a price. `attempts` counts tries, the successful one included.
    `tool_calls` wait for the caller's answers; `choices` are the texts of all choices where
    more than one was asked for; `retrieved` are passages that a hosted assistant used. `turn` are the messages
    of a job that asked for them (InvokeJob.tell): its own, then what was said; only Redis keeps them.
    """

    model_config = ConfigDict(frozen=True)

    job_id: str
    batch_id: str | None = None
    row: int | None = None
    custom_id: str | None = None
    status: Status
    output: Any = None
    assistant: str
    version: int | None = None
    thread_id: str | None = None
    model: str | None = None
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_nano: int = 0
    attempts: int = 0
    error_code: str | None = None
    error: str | None = None
    raw_reply: str | None = None
    finish_reason: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    choices: tuple[str, ...] = ()
    retrieved: tuple[dict[str, Any], ...] = ()
    turn: tuple[Message, ...] = ()
    finished_at: datetime

    @property
    def succeeded(self) -> bool:
        """Return whether there is an output to use."""
        return self.status is Status.SUCCEEDED

    def without_content(self) -> JobResult:
        """Return the ids, times, usage and status alone: what is kept of a job that is not to be recorded."""
        nothing: tuple[Any, ...] = ()
        content = {"output": None, "error": None, "raw_reply": None}
        return self.model_copy(
            update={**content, "tool_calls": nothing, "choices": nothing, "retrieved": nothing, "turn": nothing}
        )


class KeptResult(JobResult):
    """What Redis keeps of a job that is not to be recorded until its webhook is delivered: SQL holds no content."""

    metadata: dict[str, Any] = Field(default_factory=dict)
