"""What of a job was relayed to its caller, so that everything is relayed once. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field

from schemas.result import JobResult
from schemas.stream import Begun, StepEnded, StreamPart, TextPart, ToolCallPart, ToolResultPart

# A text, or the arguments of a call: step, choice, position of the call or -1.
_Place = tuple[int, int, int]


class Mismatch(Exception):  # noqa: N818 - the name says what happened
    """What was relayed is not the beginning of what the job came to."""


@dataclass(slots=True)
class _Call:
    """A call of the reply that is being relayed."""

    place: _Place
    arguments: list[str] = field(default_factory=list)


class Relayed:
    """Bound to one relay."""

    def __init__(self) -> None:
        """Begin with nothing."""
        # The last step of which something was relayed, and the one whose reply was.
        self._highest = -1
        self._step = -1
        # Characters that were relayed in each place, and that came since the epoch's beginning.
        self._sent: dict[_Place, int] = {}
        self._come: dict[_Place, int] = {}
        self._answers: set[tuple[int, str]] = set()
        self._ended: set[int] = set()
        # Of the reply that is being relayed: what each choice says, and its calls by id.
        self._texts: dict[int, list[str]] = {}
        self._calls: dict[str, _Call] = {}

    def goes_on_from(self, steps: int) -> bool:
        """Tell that a worker begins with `steps` in the journal; return whether all that was relayed still holds."""
        self._come = {}
        return self._highest < steps

    def new_of(self, part: StreamPart) -> list[StreamPart]:
        """Return what of a part is to be relayed, if anything."""
        match part:
            case TextPart():
                place = (part.step, part.index, -1)
                text = self._new(place, part.text)
                if not text:
                    return []
                self._begin(part.step)
                self._texts.setdefault(part.index, []).append(text)
                return [part if text == part.text else part.model_copy(update={"text": text})]
            case ToolCallPart():
                return self._new_of_call(part)
            case ToolResultPart():
                if (part.step, part.call_id) in self._answers:
                    return []
                self._answers.add((part.step, part.call_id))
                self._highest = max(self._highest, part.step)
                if part.step == self._step:
                    # Of a service that runs its own tools: what it says after them is its answer.
                    self._texts = {}
                return [part]
            case StepEnded():
                if part.step in self._ended:
                    return []
                self._begin(part.step)
                self._ended.add(part.step)
                return [part]
            case Begun():
                return []

    def rest_of(self, result: JobResult) -> Iterator[StreamPart]:
        """Yield what the job came to and was not relayed; raises Mismatch where it does not follow on what was."""
        all_ended = len(self._ended) >= result.requests
        if self._step in self._ended and not all_ended:
            # The last reply is another one.
            self._begin(self._step + 1)
        step = max(self._step, 0)
        for index, text in enumerate(_texts_of(result)):
            said = "".join(self._texts.get(index, ()))
            if not text.startswith(said):
                if all_ended:
                    continue
                raise Mismatch
            if len(text) > len(said):
                yield TextPart(step=step, text=text[len(said) :], index=index)
        yield from self._rest_of_calls(result, step)

    def _rest_of_calls(self, result: JobResult, step: int) -> Iterator[StreamPart]:
        position = max((call.place[2] for call in self._calls.values()), default=-1)
        for call in result.tool_calls:
            told = self._calls.get(call.id)
            if told is None:
                position += 1
                yield ToolCallPart(step=step, position=position, id=call.id, name=call.name, arguments=call.arguments)
                continue
            said = "".join(told.arguments)
            if call.arguments.startswith(said) and len(call.arguments) > len(said):
                yield ToolCallPart(step=told.place[0], position=told.place[2], arguments=call.arguments[len(said) :])

    def _new_of_call(self, part: ToolCallPart) -> list[StreamPart]:
        place = (part.step, part.index, part.position)
        begins = part.id is not None and place not in self._sent
        arguments = self._new(place, part.arguments)
        if not begins and not arguments:
            return []
        self._begin(part.step)
        if begins and part.id is not None:
            self._calls[part.id] = _Call(place)
        call = next((call for call in self._calls.values() if call.place == place), None)
        if call is not None:
            call.arguments.append(arguments)
        named = {} if begins else {"id": None, "name": None}
        return [part.model_copy(update={"arguments": arguments, **named})]

    def _new(self, place: _Place, piece: str) -> str:
        """Return the end of the piece that was not relayed; the rest of it was, under an earlier epoch."""
        begin = self._come.get(place, 0)
        self._come[place] = begin + len(piece)
        sent = self._sent.get(place, 0)
        new = piece[max(0, sent - begin) :]
        self._sent[place] = sent + len(new)
        return new

    def _begin(self, step: int) -> None:
        self._highest = max(self._highest, step)
        if step > self._step:
            self._step, self._texts, self._calls = step, {}, {}


def _texts_of(result: JobResult) -> tuple[str, ...]:
    output = result.output
    if output is None:
        return ()
    return (output if isinstance(output, str) else json.dumps(output, ensure_ascii=False), *result.choices[1:])
