"""What the flow asks of tools."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from schemas.chat import ToolCall
from schemas.tool import ToolSpec


@dataclass(frozen=True, slots=True)
class ToolDefinition:
    """What a model is told of a tool; `parameters` is a JSON Schema, `strict` whether calls must fit it."""

    name: str
    description: str
    parameters: dict[str, Any]
    strict: bool | None = None


@dataclass(frozen=True, slots=True)
class ToolAnswer:
    """What a call came to, as text for the model; a failure is an answer too."""

    call_id: str
    name: str
    content: str
    failed: bool
    began_s: float
    ended_s: float


Answered = Callable[[int, ToolAnswer], Awaitable[None]]
"""Told a call's position among the calls, and its answer."""


class ToolsUnavailable(Exception):  # noqa: N818 - the name says what happened
    """The tools of an assistant cannot be offered: one is not installed, or its server does not answer.

    `configuration` tells a mistake that only a person can mend from a server that may come back.
    """

    def __init__(self, message: str, *, configuration: bool) -> None:
        """Keep whether trying again is of use."""
        self.configuration = configuration
        super().__init__(message)


class Tools(Protocol):
    """The tools of one job, ready to be called."""

    @property
    def definitions(self) -> tuple[ToolDefinition, ...]:
        """Return what the model is offered, tools of the caller included."""
        ...

    def is_the_callers(self, name: str) -> bool:
        """Return whether a call of this name ends the job, for its caller to answer."""
        ...

    async def run(
        self, calls: Sequence[ToolCall], *, keys: Sequence[str] = (), answered: Answered | None = None
    ) -> tuple[ToolAnswer, ...]:
        """Run the calls in parallel, each within its time limit; answers come in the order of the calls.

        `keys` are the calls' idempotency keys, one each or none, for tools that know such. `answered` is
        awaited with each answer as it comes; what it raises ends the other calls, and is raised.

        Never raises for what a tool does: an unknown name, arguments that are no JSON or do
        not fit the parameters, an error and a time-out are answers to the model.
        """
        ...


class Toolbox(Protocol):
    """Makes an assistant's tools ready; servers may be shared by the jobs of a process."""

    def open(
        self, specs: Sequence[ToolSpec], *, workspace: str, recorded: bool = True
    ) -> AbstractAsyncContextManager[Tools]:
        """Make them ready for one job; raises ToolsUnavailable.

        Of a job that is not `recorded` a tool's crash is told without its words.
        """
        ...
