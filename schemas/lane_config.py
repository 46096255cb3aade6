"""The limits and prices of lanes, the weights and caps of workspaces: a YAML file and the `ASSISTQ_…` variables.

```yaml
lanes:
  - {workspace: acme, provider: api.openai.com, model: gpt-4o-mini, rpm: 3000, tpm: 360000, shape: bucket}
  - {model: "gpt-4o*", rpm: 500}
prices:                       # per million tokens (schemas/prices.py)
  - {provider: api.openai.com, model: "gpt-4.1*", prompt: 2.00, completion: 8.00}
workspaces:
  acme: {weight: 3, spend_cap: 50.00, spend_cap_period: month}
```

What an entry does not name matches all; `*`, `?` and `[…]` match as in file names, case matters. Of several
entries that match a lane the most specific one holds, and it alone: the one that names more of the three without
wildcards, then with more characters, then the workspace before the provider before the model, then the first.
What a limit leaves unset comes from ASSISTQ_RPM, _TPM, _BURST_S, _SHAPE, _MAX_CONCURRENCY and _HEADROOM.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from schemas.assistant import Workspace
from schemas.errors import InputError, InputErrors
from schemas.lane import Lane
from schemas.lane_limits import LaneLimits
from schemas.lane_pattern import LanePattern, most_specific_first
from schemas.money import nanos
from schemas.prices import Money, Period, Price, PriceEntry, SpendCap
from schemas.settings import Settings
from schemas.yaml_file import FileKind, YamlFile, dotted, read, wrong_value

# Read where ASSISTQ_LANES is not set and it stands in the working directory.
DEFAULT_LANES_FILE = "assistq.lanes.yaml"
WEIGHT_MAX = 1000.0

_KIND = FileKind(
    name="a lanes file",
    when_missing="check ASSISTQ_LANES, or unset it",
    when_directory="let ASSISTQ_LANES name the YAML file in it",
    when_empty="write `lanes:`, `prices:` or `workspaces:`, or remove the file",
    when_no_mapping="begin with `lanes:`, `prices:` or `workspaces:`",
)
# Jobs may name any model; lanes beyond these are looked up anew.
_LANES_REMEMBERED = 65_536
_NO_CAP = SpendCap()


class LaneEntry(LanePattern, LaneLimits):
    """One entry of `lanes`: which lanes it is for, and those of their limits that it sets."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def over(self, defaults: LaneLimits) -> LaneLimits:
        """Return the limits of its lanes: what it sets, the rest from the defaults."""
        own = self.model_dump(include=self.model_fields_set & LaneLimits.model_fields.keys())
        return LaneLimits.model_validate({**defaults.model_dump(), **own})


class WorkspaceEntry(BaseModel):
    """One entry of `workspaces`; `weight` is its share of the workers beside the others' weights.

    `spend_cap` is what it may spend in each `spend_cap_period`, in the currency of the prices.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    weight: float = Field(default=1.0, gt=0, le=WEIGHT_MAX, allow_inf_nan=False)
    spend_cap: Money | None = None
    spend_cap_period: Period = "month"

    @property
    def cap(self) -> SpendCap:
        """Return what it may spend."""
        nano = None if self.spend_cap is None else nanos(self.spend_cap)
        return SpendCap(nano=nano, period=self.spend_cap_period)


class _LanesFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    lanes: tuple[LaneEntry, ...] = ()
    prices: tuple[PriceEntry, ...] = ()
    workspaces: dict[Workspace, WorkspaceEntry] = Field(default_factory=dict)


class LaneConfig:
    """Says of every lane what it may do and costs, of every workspace how much it weighs and may spend.

    `file` is where that stands.
    """

    def __init__(
        self,
        defaults: LaneLimits,
        *,
        lanes: Sequence[LaneEntry] = (),
        prices: Sequence[PriceEntry] = (),
        workspaces: Mapping[str, WorkspaceEntry] | None = None,
        file: Path | None = None,
    ) -> None:
        """Take the limits of lanes that no entry is for, and the entries."""
        self.file = file
        self._defaults = defaults
        self._lanes = [(entry, entry.over(defaults)) for entry in most_specific_first(lanes)]
        self._prices = [(entry, entry.price) for entry in most_specific_first(prices)]
        self._weights = {name: entry.weight for name, entry in (workspaces or {}).items()}
        self._caps = {name: entry.cap for name, entry in (workspaces or {}).items()}
        self._found = lru_cache(maxsize=_LANES_REMEMBERED)(self._find)
        self._priced = lru_cache(maxsize=_LANES_REMEMBERED)(self._find_price)

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
        _refuse_twins("lanes", found.lanes, source)
        _refuse_twins("prices", found.prices, source)
        return cls(settings.lane_limits, lanes=found.lanes, prices=found.prices, workspaces=found.workspaces, file=path)

    def limits_of(self, lane: Lane) -> LaneLimits:
        """Return what this lane may do."""
        return self._found(lane)

    def price_of(self, lane: Lane) -> Price | None:
        """Return what tokens cost there; None if no entry says so."""
        return self._priced(lane)

    def cap_of(self, workspace: str) -> SpendCap:
        """Return what the workspace may spend; any amount unless its entry says so."""
        return self._caps.get(workspace, _NO_CAP)

    @property
    def weights(self) -> Mapping[str, float]:
        """Return the weights of the workspaces that have an entry."""
        return self._weights

    def weight_of(self, workspace: str) -> float:
        """Return the workspace's share of the workers beside the others' weights; 1 unless it has an entry."""
        return self._weights.get(workspace, 1.0)

    def _find(self, lane: Lane) -> LaneLimits:
        return next((limits for entry, limits in self._lanes if entry.matches(lane)), self._defaults)

    def _find_price(self, lane: Lane) -> Price | None:
        return next((price for entry, price in self._prices if entry.matches(lane)), None)


def _refuse_twins(kind: str, entries: Sequence[LanePattern], source: YamlFile) -> None:
    first: dict[tuple[str, str, str], int] = {}
    for number, entry in enumerate(entries):
        line = source.line_of((kind, number))
        if entry.names in first:
            raise InputError(
                f"'{kind}[{number}]' is for the same lanes as the entry in line {first[entry.names]}",
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
        case "missing":
            what = f"'{dotted(loc[:-1])}' has no '{loc[-1]}'"
            mend = f"write '{loc[-1]}:' and what a million tokens cost; 0 if they cost nothing"
        case "value_error":
            what = f"'{dotted(loc)}': {str(error['msg']).removeprefix('Value error, ')}"
            mend = f"set '{dotted(loc)}' to one, or to a pattern"
        case _:
            what, mend = wrong_value(error)
    return source.problem(error, what=what, mend=mend)


def _keys_at(loc: tuple[int | str, ...]) -> list[str]:
    entries: dict[str, type[BaseModel]] = {"lanes": LaneEntry, "prices": PriceEntry, "workspaces": WorkspaceEntry}
    model = _LanesFile if len(loc) == 1 else entries[str(loc[0])]
    return list(model.model_fields)


def _closest(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f"did you mean '{close[0]}'?" if close else f"remove it, or use one of {', '.join(known)}"
