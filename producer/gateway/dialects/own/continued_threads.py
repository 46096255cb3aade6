"""That a job of our own API goes on with no thread which its key does not see."""

from __future__ import annotations

from collections.abc import Iterable

from producer.gateway.access import Caller
from producer.gateway.continued import thread_of_others
from producer.gateway.parts import Parts
from producer.gateway.problem import Kind, Problem


def refuse_threads_of_others(parts: Parts, caller: Caller, thread_ids: Iterable[str | None]) -> None:
    """Raise Problem 404 for a thread that the key does not see; blocks."""
    found = thread_of_others(parts, caller, thread_ids)
    if found is not None:
        raise unknown_thread(found)


def unknown_thread(thread_id: str) -> Problem:
    """Return the problem of a thread that the caller does not know."""
    return Problem(Kind.NOT_FOUND, f"thread '{thread_id}' is not known", code="thread_unknown")
