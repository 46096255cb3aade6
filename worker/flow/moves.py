"""Moves: what a conversation does next, from what was said so far. Pure.

The journal's steps alone decide, so that a job which is taken up again after a crash makes
the same moves up to where it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import groupby

from schemas.chat import Message, ToolCall
from schemas.outcome import Code, Failed, Final, InvalidOutput, Succeeded
from schemas.output import OutputSpec
from worker.flow.output import OutputError, read_output
from worker.queue.steps import AnyStep, ReplyStep, ToolStep
from worker.tools.base import Tools


@dataclass(frozen=True, slots=True)
class Ask:
    """Buy a completion for these messages, which follow those that were prepared.

    `new_messages` are those that the provider has not seen yet, for one that keeps the
    conversation itself.
    """

    messages: tuple[Message, ...]
    new_messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class RunTools:
    """Run these calls of the last reply, by their position in it: those that no answer stands of yet.

    `reply` is the reply's own position among the steps.
    """

    reply: int
    calls: Mapping[int, ToolCall]

    def without(self, position: int) -> RunTools:
        """Return what is left once this call is answered."""
        return replace(self, calls={at: call for at, call in self.calls.items() if at != position})


Move = Ask | RunTools | Final


@dataclass(frozen=True, slots=True)
class Rules:
    """What bounds a conversation."""

    output: OutputSpec | None
    max_steps: int
    max_repairs: int


def next_move(steps: tuple[AnyStep, ...], rules: Rules, tools: Tools) -> Move:
    """Return what to do after these steps."""
    spoken: list[Message] = []
    new: list[Message] = []
    repairs = asked = 0
    move: Move = Ask(messages=(), new_messages=())
    for at, step in enumerate(in_order(steps)):
        match step:
            case ReplyStep():
                asked += 1
                spoken.append(step.message())
                new = []
                move = _after_reply(step, rules, tools, at=at, asked=asked, repairs=repairs)
                if isinstance(move, Ask):
                    repairs += 1
                    spoken += move.new_messages
                    new = list(move.new_messages)
                    move = Ask(messages=tuple(spoken), new_messages=tuple(new))
            case ToolStep():
                spoken.append(step.answer)
                new.append(step.answer)
                left = move.without(step.position) if isinstance(move, RunTools) else None
                if left and left.calls:
                    move = left
                else:
                    move = _after_tools(spoken, tools) or Ask(messages=tuple(spoken), new_messages=tuple(new))
            case _:
                continue
    return move


def in_order(steps: tuple[AnyStep, ...]) -> tuple[AnyStep, ...]:
    """Return the steps with the answers to one reply's calls in the order of the calls, which is how they are told."""
    ordered: list[AnyStep] = []
    for _, together in groupby(steps, key=lambda step: isinstance(step, ToolStep)):
        ordered += sorted(together, key=lambda step: step.position if isinstance(step, ToolStep) else 0)
    return tuple(ordered)


def replies(steps: tuple[AnyStep, ...]) -> tuple[ReplyStep, ...]:
    """Return the completions that were bought."""
    return tuple(step for step in steps if isinstance(step, ReplyStep))


def turn(job_messages: tuple[Message, ...], steps: tuple[AnyStep, ...]) -> tuple[Message, ...]:
    """Return what a job that succeeded adds to its thread.

    Its own messages, the rounds of tool calls with their answers, and the answer; an output
    that had to be repaired is left out, with the repair.
    """
    said: list[Message] = [*job_messages]
    for at, step in enumerate(in_order(steps)):
        match step:
            case ReplyStep():
                is_last = not any(isinstance(later, ReplyStep) for later in steps[at + 1 :])
                said += step.exchanged
                if step.tool_calls or is_last:
                    said.append(step.message())
            case ToolStep():
                said.append(step.answer)
            case _:
                continue
    return tuple(said)


def _after_reply(reply: ReplyStep, rules: Rules, tools: Tools, *, at: int, asked: int, repairs: int) -> Move:
    if reply.finish_reason == "content_filter":
        return Failed(code=Code.CONTENT_FILTER, error="the provider's content filter held the answer back")
    if reply.refusal:
        return Failed(code=Code.REFUSED_BY_MODEL, error=f"the model refused: {reply.refusal}")
    if reply.tool_calls:
        ours = {at: call for at, call in enumerate(reply.tool_calls) if not tools.is_the_callers(call.name)}
        if not ours:
            return Succeeded(output=reply.content or None, tool_calls=reply.tool_calls)
        if asked >= rules.max_steps:
            return Failed(
                code=Code.STEP_LIMIT,
                error=f"the model still called tools after {asked} steps; raise max_steps (up to 20), or say less",
            )
        return RunTools(reply=at, calls=ours)
    if reply.finish_reason == "tool_calls" and not reply.content:
        # A hosted assistant that ran its own tools until its steps were used up.
        return Failed(code=Code.STEP_LIMIT, error=f"the assistant gave no answer within {rules.max_steps} steps")
    if rules.output is None:
        return Succeeded(output=reply.content)
    return _after_answer(reply, rules.output, asked=asked, repairs=repairs, rules=rules)


def _after_answer(reply: ReplyStep, output: OutputSpec, *, asked: int, repairs: int, rules: Rules) -> Move:
    try:
        return Succeeded(output=read_output(output, reply.content, given=reply.output))
    except OutputError as exc:
        if reply.finish_reason == "length":
            # The same bound would cut a repaired reply too.
            return InvalidOutput(
                code=Code.OUTPUT_CUT_OFF,
                error=f"the reply was cut off at max_tokens ({exc}); raise max_tokens",
                raw_reply=reply.content,
            )
        if repairs >= rules.max_repairs or asked >= rules.max_steps:
            return InvalidOutput(code=exc.code, error=str(exc), raw_reply=reply.content)
        complaint = Message(
            role="user", content=f"That answer cannot be used: {exc}. Answer again, with only the corrected JSON."
        )
        return Ask(messages=(), new_messages=(complaint,))


def _after_tools(spoken: list[Message], tools: Tools) -> Succeeded | None:
    """Return the end of a job whose caller has to answer some of the last reply's calls."""
    reply = next(message for message in reversed(spoken) if message.role == "assistant")
    theirs = tuple(call for call in reply.tool_calls if tools.is_the_callers(call.name))
    return Succeeded(output=reply.content or None, tool_calls=theirs) if theirs else None
