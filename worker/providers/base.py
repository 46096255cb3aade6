"""What the flow asks of a provider, and what it gets back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from schemas.chat import Message, Usage


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One chat completion to buy. None leaves a parameter to the provider's default."""

    model: str
    messages: tuple[Message, ...]
    response_schema: dict[str, Any] | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class ChatReply:
    """What the provider answered; `usage` is its own count, `refusal` its own word for no."""

    content: str
    finish_reason: str | None
    model: str
    usage: Usage
    refusal: str | None = None


class Provider(Protocol):
    """A service that completes chats. Every failure is a ProviderError (providers/errors.py)."""

    @property
    def name(self) -> str:
        """Return the name that lanes, metrics and messages use."""
        ...

    async def complete(self, request: ChatRequest) -> ChatReply:
        """Buy one completion."""
        ...
