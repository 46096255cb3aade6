"""What the flow asks of a provider, and what it gets back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Literal, Protocol

from schemas.chat import Message, ToolCall, Usage
from schemas.output import OutputSpec
from schemas.quota_told import QuotaTold
from schemas.tool import ToolChoice
from worker.tools.base import ToolDefinition

StructuredOutput = Literal["native", "instructed"]


class Streams(IntEnum):
    """How much of streaming a server is asked for: its tokens as they come, and their count at the end."""

    NOT_AT_ALL = 0
    UNCOUNTED = 1
    COUNTED = 2


@dataclass(frozen=True, slots=True)
class HostedCall:
    """What a hosted assistant needs beyond a chat: it holds its own instructions, template and tools.

    `assistant` is its id at the service (None: `name`, `instructions`, already rendered, and
    the parameters of the request describe a temporary one). `thread_ref` is the service's
    own name for the conversation, from an earlier reply. `new_messages` are those that the
    service has not seen: one that keeps threads is not sent the history again; without a
    `thread_ref` they are the whole conversation. `keep_thread` False asks it to keep
    nothing, where it can. `model` is what the assistant or the job names; None leaves the
    choice to the service, and the request's own `model` only names the lane then.
    """

    assistant: str | None
    name: str
    instructions: str
    description: str
    variables: dict[str, Any]
    new_messages: tuple[Message, ...]
    output: OutputSpec | None
    thread_ref: str | None
    max_steps: int
    metadata: dict[str, str | int | float | bool]
    do_not_record: bool
    keep_thread: bool = True
    model: str | None = None


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One completion to buy. None leaves a parameter to the provider's default.

    `response_schema` is sent as the provider's native structured output; `response_format`
    is what the job itself asked for, word for word. `step_id` names this call for ever: a
    provider that knows idempotency keys gets it as one. Who listens is streamed to as `streams` says, at most.
    """

    model: str
    messages: tuple[Message, ...]
    response_schema: dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] | None = None
    n: int | None = None
    tools: tuple[ToolDefinition, ...] = ()
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    user: str | None = None
    reasoning_effort: str | None = None
    step_id: str | None = None
    hosted: HostedCall | None = None
    streams: Streams = Streams.COUNTED


@dataclass(frozen=True, slots=True)
class ChatReply:
    """What the provider answered; `usage` is its own count (None: it does not count), `refusal` its word for no.

    `alternatives` are the texts of the choices after the first. A hosted assistant may also
    return its thread's name, the messages it exchanged with its own tools (before the
    answer), the structured `output` it read itself, and passages that it retrieved. `told`
    is what the answer's headers say of the provider's limits, `sent_after_s` how long after the
    call began its request left (0: not known).
    """

    content: str
    finish_reason: str | None
    model: str
    usage: Usage | None
    refusal: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    alternatives: tuple[str, ...] = ()
    thread_ref: str | None = None
    exchanged: tuple[Message, ...] = ()
    output: Any = None
    retrieved: tuple[dict[str, Any], ...] = field(default=())
    told: QuotaTold | None = None
    sent_after_s: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More text of the reply's choice `index`."""

    text: str
    index: int = 0


@dataclass(frozen=True, slots=True)
class CallDelta:
    """More of the call at this place of the reply's first choice: id and name come first, once, with it."""

    position: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class ResultDelta:
    """What one of a hosted assistant's own tools answered; text that follows begins anew."""

    call_id: str
    name: str | None
    content: str


Delta = TextDelta | CallDelta | ResultDelta
OnDelta = Callable[[Delta], None]
"""Told what a reply says while it comes. It neither waits nor raises."""


class Provider(Protocol):
    """A service that completes chats. Every failure is a ProviderError (providers/errors.py).

    One call sends one request, for it has one turn of the limiter: who is to be asked in another way is asked in
    another call (StructuredOutputUnsupported, StreamRefused).
    """

    @property
    def name(self) -> str:
        """Return the name that lanes, metrics and messages use."""
        ...

    async def complete(self, request: ChatRequest, *, on_delta: OnDelta | None = None) -> ChatReply:
        """Buy one completion.

        With `on_delta` the provider is asked to stream, where it can, and what it says is told as it comes:
        all of it, some or nothing, but nothing that is no part of the reply.
        """
        ...
