"""How a server of chat completions is asked to stream, and what it refuses of that: learned once of each model."""

from __future__ import annotations

import re
from typing import Any

from worker.providers.base import ChatRequest, Streams
from worker.providers.errors import RequestRefused, StreamRefused

# How servers refuse to stream, or to count what they streamed: they name the field, or say it in words.
_NO_STREAM_OPTIONS = re.compile(r"stream[_ ]options|include[_ ]usage", re.IGNORECASE)
_NO_STREAM = re.compile(r"\bstream(?:ing|ed|s)?\b", re.IGNORECASE)


class Streaming:
    """How much of streaming each model of one server can, as far as its answers have shown."""

    def __init__(self) -> None:
        """Believe that each can all of it."""
        # Those that can less.
        self._can: dict[str, Streams] = {}

    def way_of(self, request: ChatRequest) -> Streams:
        """Return how to ask this of a server that is to stream."""
        return min(request.streams, self._can.get(request.model, Streams.COUNTED))

    def answered(self, request: ChatRequest, way: Streams) -> None:
        """Learn from an answer: only now, for a refusal may quote a prompt that speaks of streams."""
        if way < Streams.COUNTED:
            self._can[request.model] = min(way, self.way_of(request))


def stream_body(way: Streams) -> dict[str, Any]:
    """Return what a request says of streaming."""
    body: dict[str, Any] = {} if way is Streams.NOT_AT_ALL else {"stream": True}
    return body | ({"stream_options": {"include_usage": True}} if way is Streams.COUNTED else {})


def refuse_stream(refused: RequestRefused, *, asked: Streams) -> None:
    """Raise StreamRefused where the refusal of a request that `asked` for so much speaks of streaming."""
    words = str(refused)
    if asked is Streams.COUNTED and _NO_STREAM_OPTIONS.search(words):
        instead = Streams.UNCOUNTED
    elif asked is not Streams.NOT_AT_ALL and _NO_STREAM.search(words):
        instead = Streams.NOT_AT_ALL
    else:
        return
    error = StreamRefused(words, instead=instead, http_status=refused.http_status)
    error.told = refused.told
    raise error from refused
