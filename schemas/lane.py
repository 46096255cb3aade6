"""A lane: what a rate limit applies to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict

from schemas.outcome import Code


@dataclass(frozen=True, slots=True)
class Lane:
    """(workspace, provider, model); a provider's limits hold for each lane by itself."""

    workspace: str
    provider: str
    model: str

    @property
    def key(self) -> str:
        """Return the lane's name in Redis keys, metrics and messages."""
        return f"{self.workspace}/{self.provider}/{self.model}"


def provider_name(base_url: str) -> str:
    """Return the provider's part of its lanes: the host of its URL."""
    return urlsplit(base_url).hostname or base_url


class LaneFault(BaseModel):
    """Why a lane stands still although jobs wait: a wall that a person may have to remove.

    `count` is how many calls in a row met it; a success clears the fault.
    """

    model_config = ConfigDict(frozen=True)

    workspace: str
    code: Code
    reason: str
    since_ms: int
    count: int


class LaneStatus(BaseModel):
    """A lane at one moment.

    `interactive` and `batch` are the jobs that wait in its lines by priority, `oldest_ms` is
    when the first of them was enqueued (None: none waits), `entering` are those that were
    released and have not asked for their turn yet. A name that begins with `?` stands for an
    assistant of which no job was prepared yet, so that its lane is not known.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    interactive: int
    batch: int
    oldest_ms: int | None
    entering: int
    paused: bool
    fault: LaneFault | None = None

    @classmethod
    def from_report(cls, report: Sequence[str], faults: Mapping[str, LaneFault]) -> LaneStatus:
        """Read one entry of what lanes.lua returns."""
        name, interactive, batch, oldest_ms, entering, paused = report
        return cls(
            name=name,
            interactive=int(interactive),
            batch=int(batch),
            oldest_ms=int(oldest_ms) if oldest_ms else None,
            entering=int(entering),
            paused=bool(paused),
            fault=faults.get(name),
        )

    @property
    def waiting(self) -> int:
        """Return how many jobs wait in its lines."""
        return self.interactive + self.batch
