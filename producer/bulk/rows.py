"""Rows of a CSV, JSON Lines or Parquet file, each as a job or as what is wrong with it.

A column (in JSON Lines a key) is the variable of that name, except `custom_id`,
`thread_id`, `message` (an extra user message) and `metadata` (a JSON object). A problem of
the file is an InputError at once; a problem of a row is a BadRow in its place.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from producer.bulk.csv_rows import CsvRows
from producer.bulk.jsonl_rows import JsonlRows
from producer.bulk.lines import FIELD_MAX_BYTES, ROW_MAX_BYTES, Lines, open_input
from producer.bulk.needs import Needs, needs_of
from producer.bulk.parquet_rows import ParquetRows
from producer.bulk.row_jobs import SPECIAL_COLUMNS, BadRow, Counted, RowJobs
from producer.bulk.seen_ids import SeenIds
from producer.written_job import WrittenJob
from schemas import AssistantConfig, InputError

__all__ = [
    "BAD_ROWS_KEPT",
    "FIELD_MAX_BYTES",
    "ROW_MAX_BYTES",
    "SPECIAL_COLUMNS",
    "BadRow",
    "Checked",
    "check",
    "fingerprint",
    "read_rows",
    "refusal",
]

BAD_ROWS_KEPT = 1_000
_BAD_ROWS_SHOWN = 10
_SUFFIXES = (".csv", ".jsonl", ".ndjson", ".parquet")


@dataclass(frozen=True, slots=True)
class Checked:
    """What a whole pass over a file found: all its rows, the bad ones among them, and the first of those."""

    file: str
    rows: int
    bad_total: int
    bad: tuple[BadRow, ...]


def read_rows(
    path: Path,
    assistant: AssistantConfig,
    *,
    version: int | None = None,
    unique_ids: bool = False,
    name: str | None = None,
) -> Iterator[WrittenJob | BadRow]:
    """Give the job or the fault of each row in the order of the file, reading no further than asked.

    Jobs have no id yet: it follows from the batch and the row. With `unique_ids` the caller
    knows that no `custom_id` stands twice, and none is looked for. `name` is what the file is called
    where it is spoken of, if not by its path. Raises InputError, at the
    first row or when it is met, for what is wrong with the file as a whole.
    """
    file = name or str(path)
    if path.suffix.lower() not in _SUFFIXES:
        raise InputError(
            f"cannot tell its format from the suffix '{path.suffix}'",
            file=file,
            mend="name the file .csv (CSV with a header), .jsonl (one JSON object a line) or .parquet",
        )
    needs = needs_of(assistant)
    with open_input(path) as stream:
        records = _reader(path, stream, file=file)
        counted: Counted = "line"
        if isinstance(records, CsvRows):
            _check_header(records, assistant, needs, file=file)
        elif isinstance(records, ParquetRows):
            counted = "row"
            _refuse_missing_column(records.columns, assistant, needs, file=file)
        seen_ids = None if unique_ids else SeenIds()
        jobs = RowJobs(assistant, needs=needs, version=version, file=file, seen_ids=seen_ids, counted=counted)
        row = -1
        for row, record in enumerate(records):
            yield jobs.make(record, row=row)
        if row < 0:
            raise InputError("has a header but no rows", file=file, line=1, mend="add a line for each row")


def check(path: Path, assistant: AssistantConfig, *, name: str | None = None) -> Checked:
    """Read a whole file and return what is wrong with its rows, the first BAD_ROWS_KEPT in full.

    Raises InputError for what is wrong with the file as a whole. The file is read again to
    be submitted, so it must be a regular one.
    """
    _refuse_pipe(path)
    rows = bad_total = 0
    bad: list[BadRow] = []
    for entry in read_rows(path, assistant, name=name):
        rows += 1
        if isinstance(entry, BadRow):
            bad_total += 1
            if len(bad) < BAD_ROWS_KEPT:
                bad.append(entry)
    return Checked(file=name or str(path), rows=rows, bad_total=bad_total, bad=tuple(bad))


def refusal(checked: Checked) -> InputError:
    """Return the error for a file with bad rows: the first ones, a line each, and what can be done."""
    lines = [str(row.problem) for row in checked.bad[:_BAD_ROWS_SHOWN]]
    if checked.bad_total > len(lines):
        lines.append(f"… and {checked.bad_total - len(lines):,} more bad rows")
    others = checked.rows - checked.bad_total
    mend = "mend the file"
    if others:
        mend += f", or pass --skip-bad-rows to run the other {others:,} row{'' if others == 1 else 's'}"
    return InputError("\n".join([*lines, "nothing was enqueued"]), mend=mend)


def fingerprint(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with open_input(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _reader(path: Path, stream: BinaryIO, *, file: str) -> CsvRows | JsonlRows | ParquetRows:
    match path.suffix.lower():
        case ".csv":
            return CsvRows(Lines(stream, file=file), file=file)
        case ".parquet":
            return ParquetRows(stream, file=file)
        case _:
            return JsonlRows(Lines(stream, file=file), file=file)


def _check_header(records: CsvRows, assistant: AssistantConfig, needs: Needs, *, file: str) -> None:
    """Refuse a header that is data, or that lacks a column which every row needs."""
    columns = records.columns
    needed = _needed(assistant, needs)
    missing = [name for name in needed if name not in columns]
    known = any(name in SPECIAL_COLUMNS or needs.mentions(name) for name in columns)
    if (missing or needs.sources) and not known:
        example = ",".join(["custom_id", *(needed or ["…"])])
        raise InputError(
            "the first line looks like data, not like a header: none of its fields is a column that the assistant uses",
            file=file,
            line=records.header_line,
            mend=f"write a first line that names the columns, such as `{example}`",
        )
    _refuse_missing_column(columns, assistant, needs, file=file, header_line=records.header_line)


def _refuse_missing_column(
    columns: list[str], assistant: AssistantConfig, needs: Needs, *, file: str, header_line: int | None = None
) -> None:
    """Refuse a file that lacks a column which every row needs."""
    missing = [name for name in _needed(assistant, needs) if name not in columns]
    if missing:
        names = ", ".join(f"'{name}'" for name in columns)
        reason = "the assistant has no template" if missing[0] == "message" else "the template needs it"
        where = "file" if header_line is None else "header"
        raise InputError(
            f"there is no such column, and {reason}; the {where} has {names}",
            file=file,
            line=header_line,
            column=missing[0],
            mend="add the column, or rename the one that holds it",
        )


def _needed(assistant: AssistantConfig, needs: Needs) -> list[str]:
    return [*sorted(needs.names), *(["message"] if assistant.needs_a_message else [])]


def _refuse_pipe(path: Path) -> None:
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 - one call for what Path would ask twice
    except OSError:
        return  # open_input says why, in its words
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise InputError("is no regular file, and it is read twice", file=str(path), mend="save it to a file first")
