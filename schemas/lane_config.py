"""The limits of lanes and the weights of workspaces, from a YAML file and the `ASSISTQ_…` variables.

```yaml
lanes:
  - {workspace: acme, provider: api.openai.com, model: gpt-4o-mini, rpm: 3000, tpm: 360000, shape: bucket}
  - {model: "gpt-4o*", rpm: 500}
workspaces:
  acme: {weight: 3}
```

What an entry does not name matches all; `*`, `?` and `[…]` match as in file names, case matters. Of several
entries that match a lane the most specific one holds, and it alone: the one that names more of the three without
wildcards, then with more characters, then the workspace before the provider before the model, then the first.
What it leaves unset comes from ASSISTQ_RPM, _TPM, _BURST_S, _SHAPE, _MAX_CONCURRENCY and _HEADROOM.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator
from pydantic_core import ErrorDetails

from schemas.assistant import Workspace
from schemas.errors import InputError, InputErrors
from schemas.lane import Lane
from schemas.lane_limits import LaneLimits
from schemas.settings import Settings
from schemas.yaml_file import FileKind, YamlFile, dotted, read, wrong_value

# Read where ASSISTQ_LANES is not set and it stands in the working directory.
DEFAULT_LANES_FILE = "assistq.lanes.yaml"
WEIGHT_MAX = 1000.0

_KIND = FileKind(
    name="a lanes file",
    when_missing="check ASSISTQ_LANES, or unset it",
    when_directory="let ASSISTQ_LANES name the YAML file in it",
    when_empty="write `lanes:` or `workspaces:`, or remove the file",
    when_no_mapping="begin with `lanes:` or `workspaces:`",
)
_EVERY = "*"
_WILDCARD = re.compile(r"\[[^\]]*\]|[*?]")
# Jobs may name any model; lanes beyond these are looked up anew.
_LANES_REMEMBERED = 65_536

_Pattern = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class LaneEntry(LaneLimits):
    """One entry of `lanes`: which lanes it is for, and those of their limits that it sets."""

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

    def over(self, defaults: LaneLimits) -> LaneLimits:
        """Return the limits of its lanes: what it sets, the rest from the defaults."""
        own = self.model_dump(include=self.model_fields_set & LaneLimits.model_fields.keys())
        return LaneLimits.model_validate({**defaults.model_dump(), **own})


class WorkspaceEntry(BaseModel):
    """One entry of `workspaces`; `weight` is its share of the workers beside the others' weights."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    weight: float = Field(default=1.0, gt=0, le=WEIGHT_MAX, allow_inf_nan=False)


class _LanesFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    lanes: tuple[LaneEntry, ...] = ()
    workspaces: dict[Workspace, WorkspaceEntry] = Field(default_factory=dict)


class LaneConfig:
    """Says of every lane what it may do, and of every workspace how much it weighs; `file` is where that stands."""

    def __init__(
        self,
        defaults: LaneLimits,
        *,
        lanes: Sequence[LaneEntry] = (),
        workspaces: Mapping[str, WorkspaceEntry] | None = None,
        file: Path | None = None,
    ) -> None:
        """Take the limits of lanes that no entry is for, and the entries."""
        self.file = file
        self._defaults = defaults
        by_specificity = sorted(lanes, key=lambda entry: entry.specificity, reverse=True)
        self._lanes = [(entry, entry.over(defaults)) for entry in by_specificity]
        self._weights = {name: entry.weight for name, entry in (workspaces or {}).items()}
        self._found = lru_cache(maxsize=_LANES_REMEMBERED)(self._find)

    @classmethod
    def load(cls, settings: Settings) -> Self:
        """Read the file of the settings, else `assistq.lanes.yaml` in the working directory, else there is none.

        Raises InputError, or InputErrors with a line for each problem.
        """
        path = settings.lanes
        if path is None:
            path = Path.cwd() / DEFAULT_LANES_FILE
            if not path.exists():
                return cls(settings.lane_limits)
        source = read(path, _KIND)
        try:
            found = _LanesFile.model_validate(source.value)
        except ValidationError as exc:
            problems = [_problem(error, source) for error in exc.errors(include_url=False)]
            raise InputErrors(sorted(problems, key=lambda problem: problem.line or 0)) from exc
        _refuse_twins(found.lanes, source)
        return cls(settings.lane_limits, lanes=found.lanes, workspaces=found.workspaces, file=path)

    def limits_of(self, lane: Lane) -> LaneLimits:
        """Return what this lane may do."""
        return self._found(lane)

    @property
    def weights(self) -> Mapping[str, float]:
        """Return the weights of the workspaces that have an entry."""
        return self._weights

    def weight_of(self, workspace: str) -> float:
        """Return the workspace's share of the workers beside the others' weights; 1 unless it has an entry."""
        return self._weights.get(workspace, 1.0)

    def _find(self, lane: Lane) -> LaneLimits:
        return next((limits for entry, limits in self._lanes if entry.matches(lane)), self._defaults)


def _is_ipv6(text: str) -> bool:
    return text.count(":") > 1


def _refuse_twins(lanes: Sequence[LaneEntry], source: YamlFile) -> None:
    first: dict[tuple[str, str, str], int] = {}
    for number, entry in enumerate(lanes):
        line = source.line_of(("lanes", number))
        if entry.names in first:
            raise InputError(
                f"'lanes[{number}]' is for the same lanes as the entry in line {first[entry.names]}",
                file=source.file,
                line=line,
                mend="keep one of the two",
            )
        first[entry.names] = line


def _problem(error: ErrorDetails, source: YamlFile) -> InputError:
    """Translate one error of Pydantic's into what is wrong, the line, and the mend."""
    loc = error["loc"]
    match error["type"]:
        case "extra_forbidden":
            what, mend = f"unknown key '{dotted(loc)}'", _closest(str(loc[-1]), _keys_at(loc))
        case "string_pattern_mismatch":
            what = f"'{error['input']}' is no workspace"
            mend = "name the first part of an assistant's address: letters, digits and . _ -, at most 64 characters"
        case "value_error":
            what = f"'{dotted(loc)}': {str(error['msg']).removeprefix('Value error, ')}"
            mend = f"set '{dotted(loc)}' to one, or to a pattern"
        case _:
            what, mend = wrong_value(error)
    return source.problem(error, what=what, mend=mend)


def _keys_at(loc: tuple[int | str, ...]) -> list[str]:
    models: dict[int, type[BaseModel]] = {1: _LanesFile}
    default = LaneEntry if loc[0] == "lanes" else WorkspaceEntry
    return list(models.get(len(loc), default).model_fields)


def _closest(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f"did you mean '{close[0]}'?" if close else f"remove it, or use one of {', '.join(known)}"
