"""What jobs ask for, and what the model then says: both sides of the play, and the auditors, read it here. Pure."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

TOOL = "effect"
_CHARS_PER_TOKEN = 4
_TOKENS_PER_MESSAGE = 4


class Kind(StrEnum):
    """How a job goes."""

    TEXT = "text"
    SLOW = "slow"
    OBJECT = "object"
    # its first answer does not fit the schema
    REPAIR = "repair"
    TOOLS = "tools"
    # the provider judges its request wrong: the job fails
    REFUSED = "refused"


# Which of the stored assistants serves it.
ASSISTANT_OF = {
    Kind.TEXT: "plain",
    Kind.SLOW: "plain",
    Kind.REFUSED: "plain",
    Kind.OBJECT: "object",
    Kind.REPAIR: "object",
    Kind.TOOLS: "tools",
}
OUTPUT_SCHEMA = {
    "type": "object",
    "properties": {"job": {"type": "string"}, "fits": {"type": "boolean"}},
    "required": ["job", "fits"],
}
TOOL_PARAMETERS = {
    "type": "object",
    "properties": {"call": {"type": "string"}, "job": {"type": "string"}, "takes_s": {"type": "number"}},
    "required": ["call", "job", "takes_s"],
}


@dataclass(frozen=True, slots=True)
class Task:
    """What the user says: a JSON text that tells the scripted model what to do.

    Each reply takes `takes_s`; a job of kind TOOLS has so many `rounds` of so many `calls`.
    """

    job: str
    kind: Kind
    takes_s: float = 0.1
    rounds: int = 0
    calls: int = 0

    def text(self) -> str:
        """Return it as a user's message."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def read(cls, text: str) -> Task | None:
        """Return the task of a message; None if it holds none."""
        try:
            fields = json.loads(text)
            return cls(**{**fields, "kind": Kind(fields["kind"])})
        except (ValueError, TypeError, KeyError):
            return None

    def output(self) -> Any:
        """Return what a job of this task has for an output when it succeeds."""
        return _object_of(self) if self.kind in (Kind.OBJECT, Kind.REPAIR) else _words_of(self)

    def steps(self) -> int:
        """Return how many completions the job needs."""
        match self.kind:
            case Kind.TOOLS:
                return self.rounds + 1
            case Kind.REPAIR:
                return 2
            case Kind.REFUSED:
                return 0
            case Kind.TEXT | Kind.SLOW | Kind.OBJECT:
                return 1


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as the model understands it: its task, what was said before and since the task."""

    task: Task
    before: tuple[Mapping[str, Any], ...]
    since: tuple[Mapping[str, Any], ...]

    @classmethod
    def read(cls, messages: Sequence[Mapping[str, Any]]) -> Asked:
        """Find the last task among the messages, in OpenAI's form; ValueError if there is none."""
        for position in range(len(messages) - 1, -1, -1):
            if messages[position]["role"] == "user" and (task := Task.read(messages[position]["content"])):
                before = tuple(message for message in messages[:position] if message["role"] != "system")
                return cls(task, before, tuple(messages[position + 1 :]))
        raise ValueError("no message holds a task")

    @property
    def history(self) -> str:
        """Return the digest of what was said before the task."""
        return digest_of(said_in(message) for message in self.before)


def said_in(message: Mapping[str, Any]) -> tuple[str, str, tuple[str, ...], str | None]:
    """Return what counts of a message in OpenAI's form: role, text, ids of calls, id of the call that is answered."""
    calls = tuple(str(call["id"]) for call in message.get("tool_calls") or ())
    return str(message["role"]), str(message.get("content") or ""), calls, message.get("tool_call_id")


def digest_of(said: Iterable[tuple[str, str, tuple[str, ...], str | None]]) -> str:
    """Return what two equal conversations share; the empty text for none."""
    whole = [list(each) for each in said]
    return hashlib.blake2b(json.dumps(whole).encode(), digest_size=8).hexdigest() if whole else ""


def reply_to(asked: Asked, *, step: str) -> dict[str, Any]:
    """Return the model's message; tool calls are named by the step, so that a second sale makes the same ones."""
    task = asked.task
    spoken = sum(message["role"] == "assistant" for message in asked.since)
    if task.kind is Kind.TOOLS and spoken < task.rounds:
        return {
            "role": "assistant",
            "content": None,
            "tool_calls": [_call(task, f"{step}.{n}") for n in range(task.calls)],
        }
    if task.kind is Kind.REPAIR and spoken == 0:
        return {"role": "assistant", "content": "here you are, but not as you asked"}
    content = json.dumps(_object_of(task)) if task.kind in (Kind.OBJECT, Kind.REPAIR) else _words_of(task)
    return {"role": "assistant", "content": content}


def usage_of(messages: Sequence[Mapping[str, Any]], reply: Mapping[str, Any]) -> tuple[int, int]:
    """Return the tokens of prompt and completion."""
    return sum(map(_tokens, messages)), _tokens(reply)


def _tokens(message: Mapping[str, Any]) -> int:
    return len(json.dumps(message)) // _CHARS_PER_TOKEN + _TOKENS_PER_MESSAGE


def _call(task: Task, call: str) -> dict[str, Any]:
    arguments = {"call": call, "job": task.job, "takes_s": task.takes_s}
    return {"id": call, "type": "function", "function": {"name": TOOL, "arguments": json.dumps(arguments)}}


def _object_of(task: Task) -> dict[str, Any]:
    return {"job": task.job, "fits": True}


def _words_of(task: Task) -> str:
    return f"done: {task.job}"
