"""One tool that the worker can call, whatever stands behind it."""

from __future__ import annotations

from typing import Any, Protocol

from worker.tools.base import ToolDefinition


class ToolFailed(Exception):  # noqa: N818 - the name says what happened
    """A call that came to nothing; the text is the model's answer."""


class Tool(Protocol):
    """A tool of one job, ready to be called, several times at once."""

    @property
    def definition(self) -> ToolDefinition:
        """Return what the model is told."""
        ...

    @property
    def timeout_s(self) -> float:
        """Return how long one call may take."""
        ...

    async def call(self, arguments: dict[str, Any], *, key: str | None = None) -> str:
        """Call it, under an idempotency key if it has a use for one.

        Raises ToolFailed for a failure that it foresees, and anything for one that it does not.
        """
        ...

    def mask(self, text: str) -> str:
        """Return the text without the tool's secrets."""
        ...
