"""What servers send of OpenAI's chat completion, whole or in chunks, read leniently."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator


class _Lenient(BaseModel):
    model_config = ConfigDict(extra="ignore")


class Function(_Lenient):
    """What a call calls."""

    name: str | None = None
    arguments: str | None = None

    @field_validator("arguments", mode="before")
    @classmethod
    def _objects_are_text(cls, arguments: Any) -> Any:
        """Some servers give the object instead of its JSON text."""
        return json.dumps(arguments, ensure_ascii=False) if isinstance(arguments, dict | list) else arguments


class Call(_Lenient):
    """A tool call, or a piece of one."""

    index: int | None = None
    id: str | None = None
    function: Function = Field(default_factory=Function)


class Message(_Lenient):
    """A message, or the delta of one."""

    content: str | None = None
    refusal: str | None = None
    tool_calls: list[Call] | None = None
    function_call: Function | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _parts_are_text(cls, content: Any) -> Any:
        """Some servers give parts, of which the text is the answer."""
        if isinstance(content, list):
            return "".join(part.get("text") or "" for part in content if isinstance(part, dict))
        return content


class Choice(_Lenient):
    """One of the answers."""

    index: int | None = None
    message: Message
    finish_reason: str | None = None


class ChunkChoice(_Lenient):
    """A piece of one of the answers."""

    index: int | None = None
    delta: Message = Field(default_factory=Message)
    finish_reason: str | None = None


class _Beside(_Lenient):
    """What stands beside the choices of a completion and of its chunks; two of them are the agent endpoint's."""

    # None of these is worth losing a reply over that is paid for: they are read leniently.
    session_id: Any = None
    index_context_info: Any = None
    usage: Any = None


class Completion(_Beside):
    """A whole `chat.completion`."""

    model: str | None = None
    choices: list[Choice]


class Chunk(_Beside):
    """A `chat.completion.chunk`."""

    model: str | None = None
    choices: list[ChunkChoice] = Field(default_factory=list)
