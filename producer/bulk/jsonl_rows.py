"""Rows of a JSON Lines file: one object a line, read one at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from producer.bulk import strict_json
from producer.bulk.lines import FIELD_MAX_BYTES, ROW_MAX_BYTES, Lines, RowTooLongError
from producer.bulk.records import Fault, Record
from producer.bulk.strict_json import JsonFaultError
from schemas import InputError

_SPACE = re.compile(r"[ \t\r\n]*")
_MEND = "write one JSON object a line"
_SIZE_MEND = f"shorten it to {FIELD_MAX_BYTES:,} bytes"


class JsonlRows:
    """The rows of a JSON Lines file; blank lines are skipped."""

    def __init__(self, lines: Lines, *, file: str) -> None:
        """Prepare to read; nothing is read yet."""
        self._lines = lines
        self._file = file
        self._lines.column_at = lambda text: _key_at_end(text)[0]

    def __iter__(self) -> Iterator[Record]:
        """Give each row in the order of the file; InputError for a file that is one JSON array."""
        lines = self._lines
        first = True
        while True:
            lines.begin_row()
            try:
                text = next(lines)
            except StopIteration:
                break
            except RowTooLongError:
                yield Record(lines.number, self._too_long())
                first = False
                continue
            if text.isspace():
                continue
            if first and text.lstrip().startswith("["):
                self._refuse_array()
            first = False
            yield Record(lines.number, self._content(text))
        if first:
            raise InputError("is empty", file=self._file, mend="write a line with a JSON object for each row")

    def _content(self, text: str) -> dict[str, Any] | Fault:
        try:
            value = strict_json.parse(text.strip())
        except JsonFaultError as exc:
            return Fault(f"not valid JSON: {exc}", _MEND, column=_key_at_end(text)[0])
        if not isinstance(value, dict):
            return Fault(f"{strict_json.type_name(value)} instead of an object", _MEND)
        if self._lines.row_bytes > FIELD_MAX_BYTES:
            for name, field in value.items():
                if strict_json.size_bytes(field) > FIELD_MAX_BYTES:
                    return Fault(f"the field is larger than {FIELD_MAX_BYTES:,} bytes", _SIZE_MEND, column=name)
        return value

    def _too_long(self) -> Fault:
        name, start = _key_at_end(self._lines.row_text)
        size_bytes = self._lines.row_bytes - start
        while self._lines.cut:
            size_bytes += self._lines.skip()[0]
        if name is not None and size_bytes > FIELD_MAX_BYTES:
            return Fault(f"the field is larger than {FIELD_MAX_BYTES:,} bytes", _SIZE_MEND, column=name)
        return Fault(f"the row is larger than {ROW_MAX_BYTES:,} bytes", "shorten its fields")

    def _refuse_array(self) -> None:
        raise InputError(
            "begins with `[`: one JSON array is not JSON Lines",
            file=self._file,
            line=self._lines.number,
            mend="write one object a line, for example with `jq -c '.[]' FILE > NEW.jsonl`",
        )


def _key_at_end(text: str) -> tuple[str | None, int]:
    """Return the key whose value the text breaks off in, and where that value begins."""
    decoder = json.JSONDecoder()
    position = _after_space(text, 0)
    if not text.startswith("{", position):
        return None, 0
    try:
        while True:
            position = _after_space(text, position + 1)
            if not text.startswith('"', position):
                return None, 0
            name, position = decoder.raw_decode(text, position)
            position = _after_space(text, position)
            if not text.startswith(":", position):
                return name, position
            start = _after_space(text, position + 1)
            try:
                _, position = decoder.raw_decode(text, start)
            except (ValueError, RecursionError):
                return name, start
            position = _after_space(text, position)
            if not text.startswith(",", position):
                return name, start
    except ValueError:
        return None, 0


def _after_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position
