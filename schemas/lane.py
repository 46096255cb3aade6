"""A lane: what a rate limit applies to."""

from __future__ import annotations

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
