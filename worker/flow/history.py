"""History: how much of a thread is sent again. Pure."""

from __future__ import annotations

from schemas.chat import Message
from worker.limits.estimate import message_tokens

Turn = tuple[Message, ...]


def bounded(turns: tuple[Turn, ...], *, limit_tokens: int | None) -> tuple[Message, ...]:
    """Return the newest whole turns that fit into the limit, as messages, oldest first.

    A turn that begins with tool answers belongs to the one before it, which asked for them:
    a tool call is never kept without its result, nor a result without its call. The newest
    turn stays, whatever its size, while its calls wait for their caller's answers.
    """
    joined: list[Turn] = []
    for turn in turns:
        if joined and turn and turn[0].role == "tool":
            joined[-1] = (*joined[-1], *turn)
        else:
            joined.append(turn)
    if limit_tokens is None:
        return tuple(message for turn in joined for message in turn)
    kept: list[Turn] = []
    left_tokens = limit_tokens
    waits = bool(joined) and bool(unanswered_calls(joined[-1]))
    for turn in reversed(joined):
        left_tokens -= sum(message_tokens(message) for message in turn)
        if left_tokens < 0 and (kept or not waits):
            break
        kept.append(turn)
    return tuple(message for turn in reversed(kept) for message in turn)


def unanswered_calls(messages: tuple[Message, ...]) -> set[str]:
    """Return the ids of the tool calls that no message answers."""
    asked = {call.id for message in messages for call in message.tool_calls}
    return asked - {message.tool_call_id for message in messages if message.tool_call_id is not None}
