"""A thread's history as a provider takes it: each tool call with its answers right behind it. Pure."""

from __future__ import annotations

from schemas.chat import Message, ToolCall

Turn = tuple[Message, ...]


def paired(turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """Leave out answers without their call, and calls that nobody can answer any more.

    An owner may write and delete while a job of the thread runs, whose turn then stands behind what it never saw.
    The calls at the very end stay: the next job, or the owner, answers them.
    """
    said = [(number, message) for number, turn in enumerate(turns) for message in turn]
    kept: list[list[Message]] = [[] for _ in turns]
    at = 0
    while at < len(said):
        number, message = said[at]
        behind = at + 1
        while behind < len(said) and said[behind][1].role == "tool":
            behind += 1
        answers = {answer.tool_call_id for _, answer in said[at + 1 : behind]}
        is_open = behind == len(said)
        calls = tuple(call for call in message.tool_calls if is_open or call.id in answers)
        # A message with neither text nor calls left says nothing.
        if message.role != "tool" and (calls or message.content):
            kept[number].append(message if calls == message.tool_calls else _with_calls(message, calls))
        waiting = {call.id for call in calls}
        for answer_number, answer in said[at + 1 : behind]:
            if answer.tool_call_id in waiting:
                waiting.discard(answer.tool_call_id)
                kept[answer_number].append(answer)
        at = behind
    return tuple(tuple(turn) for turn in kept if turn)


def _with_calls(message: Message, calls: tuple[ToolCall, ...]) -> Message:
    return message.model_copy(update={"tool_calls": calls})
