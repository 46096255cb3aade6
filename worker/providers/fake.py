"""A provider for unit tests: answers from a list of replies and errors."""

from __future__ import annotations

from collections.abc import Iterable

from worker.providers.base import ChatReply, ChatRequest, OnDelta
from worker.providers.errors import ProviderError


class FakeProvider:
    """Gives each answer of its script once, in order, and remembers the requests."""

    name = "fake"

    def __init__(self, script: Iterable[ChatReply | ProviderError]) -> None:
        """Take the answers; asking for one more than there are is an AssertionError."""
        self._script = iter(script)
        self.requests: list[ChatRequest] = []

    async def complete(self, request: ChatRequest, *, on_delta: OnDelta | None = None) -> ChatReply:  # noqa: ARG002
        """Return or raise the next answer; it streams nothing."""
        self.requests.append(request)
        answer = next(self._script, None)
        if answer is None:
            raise AssertionError("the fake provider was asked more often than its script has answers")
        if isinstance(answer, ProviderError):
            raise answer
        return answer
