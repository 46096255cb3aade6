"""What the parts wrote down, as the auditors take it. Times are seconds of CLOCK_MONOTONIC, the machine's own."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ops.faults.script import Task

# whole: the reply has left whole · cut: we cut it off · gone: the caller had hung up before it · refused: an error was
# answered, nothing sold · unknown: the server died first
Fate = Literal["whole", "cut", "gone", "refused", "unknown"]
# role, text, ids of the tool calls, id of the call that is answered
Said = tuple[str, str, tuple[str, ...], str | None]


class Log:
    """A file of JSON lines that outlives a kill -9 of its writer, line by line."""

    def __init__(self, path: Path, *, to_disk: bool = False) -> None:
        """Append to the file; `to_disk` waits for the disk after each line."""
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._to_disk = to_disk

    def write(self, **fields: Any) -> None:
        """Write one line, in one call of the kernel."""
        os.write(self._fd, json.dumps(fields).encode() + b"\n")
        if self._to_disk:
            os.fsync(self._fd)


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a log that may not be there; a last line that is not whole is left out."""
    if not path.exists():
        return
    with path.open("rb") as stream:
        for line in stream:
            if line.endswith(b"\n"):
                yield json.loads(line)


def now_s() -> float:
    """Return the time that all processes of this machine share."""
    return time.monotonic()


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request that a worker sent, a provider's or a tool's, and what became of its reply.

    `key` is what must happen once: a step, or a tool call. `pid` is the worker process, None
    if it could not be told; `server_pid` the process that answered. `ended_s` is None where the
    fate is unknown.
    """

    key: str
    job_id: str
    pid: int | None
    server_pid: int
    arrived_s: float
    ended_s: float | None
    fate: Fate
    prompt_tokens: int = 0
    completion_tokens: int = 0
    history: str = ""


@dataclass(frozen=True, slots=True)
class Intended:
    """What the producer wanted to enqueue: one job, or a batch.

    `acknowledged` says that the enqueue returned, `cancelled` that somebody wanted to cancel it. `retry_of` is
    the batch whose rows it runs anew, which its jobs' tasks still name.
    """

    id: str
    is_batch: bool
    workspace: str
    jobs: tuple[IntendedJob, ...]
    webhook: bool
    cancelled: bool
    acknowledged: bool
    retry_of: str | None = None


@dataclass(frozen=True, slots=True)
class IntendedJob:
    """One job, with what the model was told to do."""

    id: str
    thread_id: str | None
    task: Task
    webhook: bool = False


@dataclass(frozen=True, slots=True)
class JobRow:
    """A job that ended, as SQL has it."""

    id: str
    batch_id: str | None
    workspace: str
    thread_id: str | None
    status: str
    error_code: str | None
    output: Any
    requests: int
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class BatchRow:
    """A batch that ended, as SQL has it."""

    id: str
    state: str
    total: int
    counts: Mapping[str, int]
    requests: int
    prompt_tokens: int
    completion_tokens: int
    webhook: bool


@dataclass(frozen=True, slots=True)
class ThreadLine:
    """One message of a thread, as SQL has it."""

    workspace: str
    thread_id: str
    position: int
    job_id: str
    said: Said


@dataclass(frozen=True, slots=True)
class Receipt:
    """A webhook as it arrived; `about` is what it tells of: `batch/<id>` or `job/<id>`."""

    about: str
    event_id: str
    event_type: str
    body: str
    verified: bool
    answered: bool


@dataclass(frozen=True, slots=True)
class DeliveryRow:
    """A delivery as SQL has it."""

    id: str
    about: str
    state: str


@dataclass(frozen=True, slots=True)
class Facts:
    """All that a run left."""

    calls: tuple[Exchange, ...] = ()
    effects: tuple[Exchange, ...] = ()
    intended: tuple[Intended, ...] = ()
    jobs: tuple[JobRow, ...] = ()
    batches: tuple[BatchRow, ...] = ()
    thread_lines: tuple[ThreadLine, ...] = ()
    receipts: tuple[Receipt, ...] = ()
    deliveries: tuple[DeliveryRow, ...] = ()
    # job id -> status, as Redis keeps it for handle.result()
    results: Mapping[str, str] = field(default_factory=dict)
    # batch id -> its hash in Redis
    batch_hashes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    # Redis keys that nothing should be left of, with what they hold
    left_in_redis: Mapping[str, str] = field(default_factory=dict)
    # processes that nobody answers for, in words
    orphans: tuple[str, ...] = ()
    # faults of our own that workers logged, in words
    crashes: tuple[str, ...] = ()
    # what had not come to its end when the time was over, in words
    unsettled: tuple[str, ...] = ()
