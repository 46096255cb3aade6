"""Rows of a CSV file, RFC 4180 with a header, read one at a time."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

from producer.bulk.lines import FIELD_MAX_BYTES, ROW_MAX_BYTES, Lines, RowTooLongError
from producer.bulk.records import Fault, Record
from schemas import InputError

# A quote that is still open after this much is one that nobody closed: what follows cannot be trusted.
OPEN_QUOTE_MAX_BYTES = 64 * 1_048_576

# How the csv module's messages begin; it tells its errors apart in no other way.
_TOO_LARGE, _END_IN_QUOTES, _CARRIAGE_RETURN = "field larger", "unexpected end", "new-line character"

_QUOTE_MEND = 'close the quote, and write a quote inside a quoted field twice ("")'
_SIZE_MEND = f"shorten it to {FIELD_MAX_BYTES:,} bytes"


class CsvRows:
    """The rows of a CSV file; reads the header at once.

    The delimiter is a comma, or `;` or a tab where the header has that and no comma. Blank
    lines are skipped. `columns` are the header's names, `header_line` its physical line.
    """

    def __init__(self, lines: Lines, *, file: str) -> None:
        """Read the header; InputError if there is none or if it does not name each column once."""
        # The limit is the whole process's: raise it, never lower what an application has set.
        csv.field_size_limit(max(csv.field_size_limit(), FIELD_MAX_BYTES))
        self._lines = lines
        self._file = file
        self.columns: list[str] = []
        self.header_line = 0
        self._delimiter = ","
        self._read_header()
        self._lines.column_at = self._column_at

    def __iter__(self) -> Iterator[Record]:
        """Give each row in the order of the file."""
        lines = self._lines
        columns = self.columns
        width = len(columns)
        reader = csv.reader(lines, delimiter=self._delimiter, strict=True)
        while True:
            lines.begin_row()
            line = lines.number + 1
            try:
                fields = next(reader)
            except StopIteration:
                return
            except (csv.Error, RowTooLongError) as exc:
                yield Record(line, self._fault_of(exc, line))
                continue
            if not fields or (len(fields) == 1 and width > 1 and not fields[0].strip()):
                continue
            if len(fields) != width:
                yield Record(line, self._ragged(fields))
            elif lines.row_bytes > FIELD_MAX_BYTES and (fault := self._oversized(fields)):
                yield Record(line, fault)
            else:
                yield Record(line, dict(zip(columns, fields, strict=True)))

    def _read_header(self) -> None:
        header = self._first_line_with_text()
        self.header_line = self._lines.number
        if "," not in header:
            self._delimiter = next((char for char in ";\t" if len(self._cells(header, char)) > 1), ",")
        self.columns = [cell.strip() for cell in self._cells(header, self._delimiter)]
        for position, name in enumerate(self.columns):
            if not name:
                self._refuse_header(
                    f"the header's column {position + 1} has no name",
                    column=str(position + 1),
                    mend="name every column in the first line, as in `custom_id,review`",
                )
            if name in self.columns[:position]:
                self._refuse_header(
                    f"the header names column '{name}' twice", column=name, mend="give each column a name of its own"
                )

    def _first_line_with_text(self) -> str:
        while True:
            self._lines.begin_row()
            try:
                text = next(self._lines)
            except StopIteration:
                raise InputError(
                    "is empty", file=self._file, mend="write a header line and a line for each row"
                ) from None
            except RowTooLongError:
                self._refuse_header("the first line has no end", mend="begin with a line that names the columns")
            if text.strip():
                return text

    def _cells(self, header: str, delimiter: str) -> list[str]:
        try:
            return next(csv.reader([header], delimiter=delimiter, strict=True))
        except csv.Error as exc:
            if str(exc).startswith(_CARRIAGE_RETURN):
                self._refuse_header(
                    "lines end in a carriage return alone", mend="save the file with LF or CRLF line ends"
                )
            self._refuse_header(f"the header is not CSV: {exc}", mend="name the columns, as in `custom_id,review`")

    def _refuse_header(self, what: str, *, column: str | None = None, mend: str) -> NoReturn:
        raise InputError(what, file=self._file, line=self._lines.number, column=column, mend=mend)

    def _column_at(self, text: str) -> str:
        return self._name(_scan(text, self._delimiter).last)

    def _name(self, index: int) -> str:
        return self.columns[index] if index < len(self.columns) else str(index + 1)

    def _ragged(self, fields: list[str]) -> Fault:
        width = len(self.columns)
        few = len(fields) < width
        mend = "add the missing fields, empty if need be"
        if not few:
            mend = f"put a field that holds `{self._delimiter}` in quotes"
        position = self.columns.index("custom_id") if "custom_id" in self.columns else width
        return Fault(
            f"{len(fields)} field{'' if len(fields) == 1 else 's'}, but the header has {width}",
            mend,
            column=self.columns[len(fields)] if few else str(width + 1),
            custom_id=fields[position] if position < len(fields) else None,
        )

    def _oversized(self, fields: list[str]) -> Fault | None:
        for name, field in zip(self.columns, fields, strict=True):
            if len(field.encode()) > FIELD_MAX_BYTES:
                return Fault(f"the field is larger than {FIELD_MAX_BYTES:,} bytes", _SIZE_MEND, column=name)
        return None

    def _fault_of(self, exc: Exception, line: int) -> Fault:
        """Say what broke the row that began in `line`, and move on to where the next one begins."""
        lines, reason = self._lines, str(exc)
        seen = _scan(lines.row_text, self._delimiter)
        ended = reason.startswith(_END_IN_QUOTES)
        if seen.quote_open and not ended:
            ended = not self._skip_to_closing_quote(line, self._name(seen.last))
        while lines.cut:
            lines.skip()
        if ended:
            return Fault(
                "a quote opens and is never closed: "
                f"all up to the end of the file, line {lines.number}, belongs to this row",
                _QUOTE_MEND,
                column=self._name(seen.last),
            )
        if seen.oversized is not None or reason.startswith(_TOO_LARGE):
            column = self._name(seen.last if seen.oversized is None else seen.oversized)
            return Fault(f"the field is larger than {FIELD_MAX_BYTES:,} bytes", _SIZE_MEND, column=column)
        if isinstance(exc, RowTooLongError):
            return Fault(f"the row is larger than {ROW_MAX_BYTES:,} bytes", "shorten its fields")
        if reason.startswith(_CARRIAGE_RETURN):
            return Fault("a carriage return stands outside quotes", "remove it, or put its field in quotes")
        where = f" in line {lines.number}" if lines.number > line else ""
        return Fault(
            f"text follows a closing quote{where}",
            _QUOTE_MEND,
            column=self._name(seen.last if seen.stray is None else seen.stray),
        )

    def _skip_to_closing_quote(self, line: int, column: str) -> bool:
        """Pass over the rest of a quoted field and its line; False if the file ends first."""
        quote_open, skipped_bytes = True, 0
        while quote_open or self._lines.cut:
            size_bytes, quotes = self._lines.skip()
            if size_bytes == 0:
                return not quote_open
            quote_open ^= quotes % 2 == 1
            skipped_bytes += size_bytes
            if quote_open and skipped_bytes > OPEN_QUOTE_MAX_BYTES:
                raise InputError(
                    f"a quote opens and is not closed within {OPEN_QUOTE_MAX_BYTES:,} bytes",
                    file=self._file,
                    line=line,
                    column=column,
                    mend=_QUOTE_MEND,
                )
        return True


@dataclass(frozen=True, slots=True)
class _Scan:
    """What the text of a broken row shows; the numbers are positions of fields, from 0."""

    last: int
    quote_open: bool
    oversized: int | None
    stray: int | None


def _scan(text: str, delimiter: str) -> _Scan:
    """Walk over a row that the csv module gave up on, which does not say where."""
    index = start = 0
    oversized: int | None = None
    stray: int | None = None
    while True:
        content, end, quote_open = start, start, False
        if text.startswith('"', start):
            content = start + 1
            closing = _closing_quote(text, content)
            quote_open = closing < 0
            end = len(text) if quote_open else closing + 1
            if stray is None and text[end : end + 1] not in (delimiter, "\n", "\r", ""):
                stray = index
        delimiter_at = -1 if quote_open else text.find(delimiter, end)
        stop = len(text) if delimiter_at < 0 else delimiter_at
        if oversized is None and _is_oversized(text[content:stop], quoted=content > start):
            oversized = index
        if delimiter_at < 0:
            return _Scan(index, quote_open, oversized, stray)
        index, start = index + 1, delimiter_at + 1


def _closing_quote(text: str, start: int) -> int:
    """Return where the quoted field that begins at `start` closes, -1 if it does not."""
    position = text.find('"', start)
    while position >= 0 and text.startswith('""', position):
        position = text.find('"', position + 2)
    return position


def _is_oversized(raw: str, *, quoted: bool) -> bool:
    # A character is at most 4 bytes: most fields need no encoding to be found small.
    if len(raw) * 4 <= FIELD_MAX_BYTES:
        return False
    content = raw.removesuffix('"').replace('""', '"') if quoted else raw.rstrip("\r\n")
    return len(content.encode()) > FIELD_MAX_BYTES
