"""Which lanes an entry of the lanes file is for."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, StringConstraints, field_validator

from schemas.lane import Lane

_EVERY = "*"
_WILDCARD = re.compile(r"\[[^\]]*\]|[*?]")

_Pattern = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class LanePattern(BaseModel):
    """The lanes that an entry is for; what it does not name matches all, `*`, `?` and `[…]` as in file names."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    workspace: _Pattern = _EVERY
    provider: _Pattern = _EVERY
    model: _Pattern = _EVERY

    @field_validator("workspace")
    @classmethod
    def _workspace_can_be_one(cls, pattern: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9_.\-*?!\[\]]+", pattern):
            raise ValueError("no workspace is called so; it is the first part of an assistant's address")
        return pattern

    @field_validator("provider")
    @classmethod
    def _provider_is_a_host(cls, pattern: str) -> str:
        if "/" in pattern or (":" in pattern and "[" not in pattern and not _is_ipv6(pattern)):
            raise ValueError("a provider is named by its host, such as api.openai.com, without https://, port or path")
        return pattern.lower()

    @property
    def names(self) -> tuple[str, str, str]:
        """Return the patterns of the lanes that it is for."""
        return self.workspace, self.provider, self.model

    def matches(self, lane: Lane) -> bool:
        """Return whether it is for this lane."""
        parts = (lane.workspace, lane.provider, lane.model)
        return all(fnmatchcase(part, pattern) for part, pattern in zip(parts, self.names, strict=True))

    @property
    def specificity(self) -> tuple[int, int, tuple[bool, ...]]:
        """Return what two entries are compared by: the greater one holds."""
        exact = tuple(_WILDCARD.search(pattern) is None for pattern in self.names)
        characters = sum(len(_WILDCARD.sub("", pattern)) for pattern in self.names)
        return sum(exact), characters, exact


Entry = TypeVar("Entry", bound=LanePattern)


def most_specific_first(entries: Iterable[Entry]) -> list[Entry]:
    """Return the entries so that the first one that matches a lane is the one that holds."""
    return sorted(entries, key=lambda entry: entry.specificity, reverse=True)


def _is_ipv6(text: str) -> bool:
    return text.count(":") > 1
