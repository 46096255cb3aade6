"""What a reader of rows hands on: the values of one row, or the fault for which it has none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from schemas.outcome import Code


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a row, and how to mend it; `custom_id` if it could still be read."""

    what: str
    mend: str
    column: str | None = None
    code: Code = Code.BAD_ROW
    custom_id: str | None = None


@dataclass(slots=True)
class Record:
    """One row: the physical line in which it begins, from 1 (its number in a file without lines), and its values."""

    line: int
    content: dict[str, Any] | Fault
