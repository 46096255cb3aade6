"""What the flow asks of the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from schemas.assistant import AssistantConfig
from schemas.batch import BatchStatus
from schemas.chat import Message
from schemas.job import JobRecord
from schemas.result import JobResult


class StoreAway(Exception):  # noqa: N818 - the name says what happened
    """The database cannot be reached, or refuses to write, for now."""


class RowHeld(StoreAway):
    """Somebody holds a row that this one needs, such as a thread's, for too long; it says nothing of other rows."""


@dataclass(frozen=True, slots=True)
class StoredAssistant:
    """A version of an assistant; an inline one has no number."""

    config: AssistantConfig
    version: int | None


@dataclass(frozen=True, slots=True)
class JobContext:
    """What SQL knows that a job needs: read in one transaction.

    `settled` is set when a job of this id ended before, whoever ran it. `history` are the
    turns of its thread, oldest first: the messages that one job left. `provider_refs` are
    the names that hosted assistants gave the thread. With `is_of_others` the job must not go on with
    its thread (JobRecord.within), and nothing of it is here.
    """

    settled: JobResult | None
    assistant: StoredAssistant | None
    history: tuple[tuple[Message, ...], ...] = ()
    provider_refs: Mapping[str, str] = field(default_factory=dict)
    is_of_others: bool = False


@dataclass(frozen=True, slots=True)
class Settlement:
    """All that one job leaves behind.

    `new_messages` are this job's turn of the thread: what was asked and what was answered;
    empty unless it succeeded, so that no half turn is kept. `provider_ref` is (provider, its
    name for the thread), where it gave one.
    """

    record: JobRecord
    epoch: int
    enqueued_ms: int
    result: JobResult
    new_messages: tuple[Message, ...]
    provider_ref: tuple[str, str] | None = None


class Store(Protocol):
    """Durable memory of what was done. Every method raises StoreAway when it cannot be reached."""

    async def context(self, record: JobRecord) -> JobContext:
        """Read what the job needs."""
        ...

    async def settle(self, settlement: Settlement) -> JobResult:
        """Write the end of a job once; return the result that stands, which may be an earlier one."""
        ...

    async def end_batch(self, status: BatchStatus) -> None:
        """Write the end of a batch, and the delivery of its webhook, once."""
        ...
