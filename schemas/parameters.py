"""What an assistant sets and a job may override: the parameters of a completion."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from schemas.tool import ToolChoice, ToolSpec

# OpenAI's, and what servers that speak like it take beside them; which a model takes, its provider says.
ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class Parameters(BaseModel):
    """Parameters of a completion; None leaves one to whoever is asked next: job, assistant, provider.

    Ranges are OpenAI's. `max_tokens` -1 in a job means that no limit is sent
    (CONTRACT.md 1.2). `tools` of a job replace the assistant's; an empty list removes them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str | None = Field(default=None, min_length=1, max_length=200)
    max_tokens: int | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    seed: int | None = None
    stop: tuple[str, ...] | None = Field(default=None, min_length=1, max_length=16)
    n: int | None = Field(default=None, ge=1, le=128)
    tools: tuple[ToolSpec, ...] | None = Field(default=None, max_length=128)
    tool_choice: ToolChoice | None = None
    response_format: dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    user: str | None = Field(default=None, max_length=512)
    reasoning_effort: ReasoningEffort | None = None

    @field_validator("max_tokens")
    @classmethod
    def _max_tokens_is_positive_or_unlimited(cls, max_tokens: int | None) -> int | None:
        if max_tokens is not None and max_tokens < 1 and max_tokens != -1:
            raise ValueError("max_tokens must be at least 1, or -1 for no limit")
        return max_tokens

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop_is_a_list(cls, stop: Any) -> Any:
        return (stop,) if isinstance(stop, str) else stop

    @field_validator("tools")
    @classmethod
    def _tools_have_names_of_their_own(cls, tools: tuple[ToolSpec, ...] | None) -> tuple[ToolSpec, ...] | None:
        names = [tool.name for tool in tools or ()]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two tools are named '{name}'")
        return tools
