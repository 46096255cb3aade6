"""Conversations for services that take no system message."""

from __future__ import annotations

from collections.abc import Sequence

from schemas.chat import Message, TextPart


def without_system(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Return the messages with the system's text at the head of the first user message.

    Where no user speaks, the text becomes a user message of its own, in front. So it keeps
    its place before everything that it is to govern, and no role is left that the service
    refuses.
    """
    text = system_text(messages)
    rest = [message for message in messages if message.role != "system"]
    if not text:
        return tuple(rest)
    for position, message in enumerate(rest):
        if message.role == "user":
            rest[position] = message.model_copy(update={"content": _led_by(text, message)})
            return tuple(rest)
    return (Message(role="user", content=text), *rest)


def system_text(messages: Sequence[Message]) -> str:
    """Return what the system messages say, a blank line between two."""
    return "\n\n".join(message.text for message in messages if message.role == "system" and message.text)


def _led_by(text: str, message: Message) -> str | tuple[object, ...]:
    if isinstance(message.content, tuple):
        return (TextPart(text=f"{text}\n\n"), *message.content)
    return f"{text}\n\n{message.content or ''}"
