"""The chunks of a streamed completion: told as they come, and put together."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from worker.providers.base import CallDelta, ChatRequest, OnDelta, TextDelta
from worker.providers.completion_forms import Call, Choice, Chunk, ChunkChoice, Completion, Function, Message
from worker.providers.errors import ProviderError, ReplyLost, ReplyMalformed
from worker.providers.http_errors import error_in_stream
from worker.providers.sse import OnEvent, Stream
from worker.providers.texts import Halves


def joined(stream: Stream, *, name: str, request: ChatRequest) -> Completion:
    """Put the chunks of a stream together."""
    choices: dict[int, _ChoiceInParts] = {}
    whole = Completion(choices=[])
    for event in stream.events:
        error = _error_in(event, request)
        if error is not None:
            raise error
        try:
            chunk = Chunk.model_validate(event)
        except ValidationError as exc:
            raise ReplyMalformed(f"a chunk that is none: {event}", http_status=200) from exc
        whole.model = chunk.model or whole.model
        whole.usage = chunk.usage or whole.usage
        whole.session_id = chunk.session_id or whole.session_id
        whole.index_context_info = chunk.index_context_info or whole.index_context_info
        for part in chunk.choices:
            choices.setdefault(part.index or 0, _ChoiceInParts()).add(part)
    finished = [choice for choice in choices.values() if choice.finish_reason]
    if stream.cut is not None and len(finished) < max(len(choices), request.n or 1):
        raise lost(stream.cut, name=name)
    whole.choices = [choice.joined(index) for index, choice in choices.items()]
    return whole


def _error_in(event: Any, request: ChatRequest) -> ProviderError | None:
    failed = isinstance(event, dict) and (event.get("error") or event.get("type") == "error")
    return error_in_stream(event, request=request) if failed else None


def lost(cut: str | None, *, name: str) -> ReplyLost:
    """Return the error for a stream that ended before its reply did."""
    return ReplyLost(
        f"{name} did not finish its answer: {cut or 'the stream said nothing that ends it'}", http_status=200
    )


def telling(on_delta: OnDelta | None) -> OnEvent | None:
    """Return who takes the chunks one by one and tells what they say, None if nobody listens."""
    return _Deltas(on_delta).event if on_delta is not None else None


class _Deltas:
    """Tells the chunks of one stream; what is wrong with them says who puts them together.

    A call is told once its id and name are known; one without an id of its own gets one with the whole reply.
    """

    def __init__(self, on_delta: OnDelta) -> None:
        self._on_delta = on_delta
        self._halves = Halves()
        self._choice = _ChoiceInParts()
        # Places of the calls that were told, with their ids.
        self._calls: dict[int, str] = {}

    def event(self, event: Any) -> None:
        try:
            chunk = Chunk.model_validate(event)
        except ValidationError:
            return
        for part in chunk.choices:
            index = part.index or 0
            text = self._halves.joined(("text", index), part.delta.content or "")
            if text:
                self._on_delta(TextDelta(text=text, index=index))
            # Of other choices only the text is kept.
            if index == 0 and part.delta.tool_calls:
                self._tell_calls(part.delta.tool_calls)

    def _tell_calls(self, pieces: list[Call]) -> None:
        for piece in pieces:
            place = self._choice.add_call(piece)
            if place in self._calls:
                more = self._halves.joined(("call", place), piece.function.arguments or "")
                if more:
                    self._on_delta(CallDelta(position=place, arguments=more))
                continue
            call = self._choice.call(place)
            if call.id and call.function.name and call.id not in self._calls.values():
                self._calls[place] = call.id
                arguments = self._halves.joined(("call", place), call.function.arguments or "")
                self._on_delta(CallDelta(position=place, id=call.id, name=call.function.name, arguments=arguments))


class _ChoiceInParts:
    """One choice of a stream, as far as it has come."""

    def __init__(self) -> None:
        self.finish_reason: str | None = None
        self._content: list[str] = []
        self._refusal: list[str] = []
        self._calls: dict[int, _CallInParts] = {}
        self._function_call: _CallInParts | None = None

    def add(self, part: ChunkChoice) -> None:
        self.finish_reason = part.finish_reason or self.finish_reason
        self._content.append(part.delta.content or "")
        self._refusal.append(part.delta.refusal or "")
        for call in part.delta.tool_calls or ():
            self.add_call(call)
        if part.delta.function_call is not None:
            self._function_call = self._function_call or _CallInParts()
            self._function_call.add(None, part.delta.function_call)

    def add_call(self, call: Call) -> int:
        """Add a piece of a call; return which call it belongs to."""
        place = self._place_of(call)
        self._calls.setdefault(place, _CallInParts()).add(call.id, call.function)
        return place

    def call(self, place: int) -> Call:
        """Return a call as far as it has come."""
        return self._calls[place].joined()

    def _place_of(self, call: Call) -> int:
        """Some servers leave the index away: a new id is a new call then, and no id belongs to the last one."""
        if call.index is not None:
            return call.index
        last = max(self._calls, default=-1)
        return last + 1 if last < 0 or (call.id and call.id != self._calls[last].id) else last

    def joined(self, index: int) -> Choice:
        message = Message(
            content="".join(self._content),
            refusal="".join(self._refusal) or None,
            tool_calls=[self._calls[place].joined() for place in sorted(self._calls)],
            function_call=self._function_call.joined().function if self._function_call else None,
        )
        return Choice(index=index, message=message, finish_reason=self.finish_reason)


class _CallInParts:
    def __init__(self) -> None:
        self.id: str | None = None
        self._name: str | None = None
        self._arguments: list[str] = []

    def add(self, call_id: str | None, function: Function) -> None:
        self.id = self.id or call_id
        self._name = self._name or function.name
        self._arguments.append(function.arguments or "")

    def joined(self) -> Call:
        return Call(id=self.id, function=Function(name=self._name, arguments="".join(self._arguments)))
