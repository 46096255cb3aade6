"""Rows of a Parquet file, a few at a time, with values as JSON has them.

Null is a value that is missing, in columns and in structs. Times are ISO 8601 text (in UTC if
they have a zone, to the microsecond), decimals their digits as text, UUIDs text. What JSON has not, such
as bytes, durations, NaN and maps of other keys than text, makes the row a bad one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any, BinaryIO
from uuid import UUID

from producer.bulk import parquet_library, strict_json
from producer.bulk.lines import FIELD_MAX_BYTES, ROW_MAX_BYTES
from producer.bulk.records import Fault, Record
from schemas import InputError

# What is decoded at once: as many rows as have this size on average, within bounds.
_BATCH_BYTES = 4 * 1_048_576
_BATCH_MAX_ROWS = 128
# Of each column's compressed pages, instead of all of a row group's.
_BUFFER_BYTES = 128 * 1024
_MEND = "write the file again, whole, with a library such as pyarrow"
# What pyarrow raises for a value that Python has no like of: a year 10,000, text that is no UTF-8, a key twice.
_NO_LIKE_OF_IT = (ValueError, OverflowError, KeyError, NotImplementedError, TypeError)


class _NoJsonError(ValueError):
    """A value that JSON has not; the message says what it is."""


class ParquetRows:
    """The rows of a Parquet file; reads its schema at once. `columns` are the names of its columns."""

    def __init__(self, stream: BinaryIO, *, file: str) -> None:
        """Read the schema; InputError for a file that is none, that is cut off, or that has no rows."""
        self._pa = pa = parquet_library.load(file=file)
        self._file = file
        if not stream.read(1):
            raise InputError("is empty", file=file, mend=_MEND)
        stream.seek(0)
        try:
            # pre_buffer would hold whole row groups.
            self._parquet = pa.parquet.ParquetFile(
                stream,
                pre_buffer=False,
                buffer_size=_BUFFER_BYTES,
                coerce_int96_timestamp_unit="us",
                page_checksum_verification=True,
            )
            self._schema = self._parquet.schema_arrow
        except (pa.ArrowException, OSError, ValueError) as exc:
            raise InputError(f"is no whole Parquet file: {_first_line(exc)}", file=file, mend=_MEND) from exc
        self.columns: list[str] = list(self._schema.names)
        self._plain = [_is_plain(pa, field.type) for field in self._schema]
        self._refuse_columns()
        if self._parquet.metadata.num_rows == 0:
            raise InputError("has no rows", file=file, mend="write at least one row")

    def __iter__(self) -> Iterator[Record]:
        """Give each row in the order of the file; its number, from 1, stands for the line."""
        number = 0
        for batch in self._batches():
            # No field is larger than all of them together.
            small = batch.nbytes <= FIELD_MAX_BYTES
            columns = [self._values(batch.column(at), plain=plain) for at, plain in enumerate(self._plain)]
            for values in zip(*columns, strict=True):
                number += 1
                content = {name: value for name, value in zip(self.columns, values, strict=True) if value is not None}
                yield Record(number, _fault_of(content, small=small) or content)

    def _refuse_columns(self) -> None:
        if not self.columns:
            raise InputError("has no columns", file=self._file, mend="write a column for each variable")
        for position, name in enumerate(self.columns):
            if not name.strip():
                raise InputError(f"column {position + 1} has no name", file=self._file, mend="name every column")
            if name in self.columns[:position]:
                raise InputError("two columns have this name", file=self._file, column=name, mend="rename one of them")

    def _batches(self) -> Iterator[Any]:
        """Give the file's rows, some at once; InputError where they cannot be read."""
        batches = self._parquet.iter_batches(batch_size=self._batch_rows(), use_threads=False)
        read = 0
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except (self._pa.ArrowException, OSError, ValueError) as exc:
                raise InputError(
                    f"cannot be read beyond row {read}: {_first_line(exc)}", file=self._file, mend=_MEND
                ) from exc
            read += batch.num_rows
            yield batch

    def _batch_rows(self) -> int:
        metadata = self._parquet.metadata
        groups = (metadata.row_group(at) for at in range(metadata.num_row_groups))
        row_bytes = max((group.total_byte_size / max(1, group.num_rows) for group in groups), default=1.0)
        return int(min(_BATCH_MAX_ROWS, max(1.0, _BATCH_BYTES / max(1.0, row_bytes))))

    def _values(self, column: Any, *, plain: bool) -> list[Any]:
        """Return the column's values as JSON has them, a Fault in the place of each that it has not."""
        kind = column.type
        if self._pa.types.is_timestamp(kind):
            # Python's have microseconds; in UTC no time zone's rules are needed.
            unit = "us" if kind.unit == "ns" else kind.unit
            column = column.cast(self._pa.timestamp(unit, tz="UTC" if kind.tz else None), safe=False)
        try:
            values: list[Any] = column.to_pylist(maps_as_pydicts="strict")
            return values if plain else [_jsonable(value) for value in values]
        except _NO_LIKE_OF_IT:
            return [_one(value) for value in column]


def _one(scalar: Any) -> Any:
    try:
        return _jsonable(scalar.as_py(maps_as_pydicts="strict"))
    except _NoJsonError as exc:
        what = str(exc)
    except _NO_LIKE_OF_IT as exc:
        what = f"the value cannot be read: {_first_line(exc)}"
    return Fault(what, "write it as text or a number")


def _jsonable(value: Any) -> Any:
    match value:
        case None | bool() | str() | int():
            return value
        case float():
            if not math.isfinite(value):
                raise _NoJsonError(f"{value} is no JSON value")
            return value
        case datetime():
            return (value.astimezone(UTC) if value.tzinfo else value).isoformat()
        case date() | time():
            return value.isoformat()
        case Decimal():
            return format(value, "f")
        case UUID():
            return str(value)
        case list():
            return [_jsonable(each) for each in value]
        case dict():
            if not all(isinstance(key, str) for key in value):
                raise _NoJsonError("a map has keys that are no text")
            return {key: _jsonable(each) for key, each in value.items() if each is not None}
        case _:
            raise _NoJsonError(f"a value of type {type(value).__name__} is no JSON value")


def _fault_of(content: dict[str, Any], *, small: bool) -> Fault | None:
    """Return what is wrong with a row's values, if anything is."""
    row_bytes = 0
    for name, value in content.items():
        if isinstance(value, Fault):
            return _fault(value.what, value.mend, column=name, content=content)
        if small or isinstance(value, (int, float)):
            continue
        size_bytes = strict_json.size_bytes(value)
        if size_bytes > FIELD_MAX_BYTES:
            what = f"the field is larger than {FIELD_MAX_BYTES:,} bytes"
            return _fault(what, f"shorten it to {FIELD_MAX_BYTES:,} bytes", column=name, content=content)
        row_bytes += size_bytes
    if row_bytes > ROW_MAX_BYTES:
        return _fault(
            f"the row is larger than {ROW_MAX_BYTES:,} bytes", "shorten its fields", column=None, content=content
        )
    return None


def _fault(what: str, mend: str, *, column: str | None, content: dict[str, Any]) -> Fault:
    custom_id = content.get("custom_id")
    return Fault(what, mend, column=column, custom_id=custom_id if isinstance(custom_id, str) else None)


def _is_plain(pa: Any, kind: Any) -> bool:
    """Return whether each value of the type is JSON's as Python has it."""
    types = pa.types
    if types.is_dictionary(kind):
        return _is_plain(pa, kind.value_type)
    return any(
        holds(kind)
        for holds in (types.is_boolean, types.is_integer, types.is_string, types.is_large_string, types.is_string_view)
    )


def _first_line(exc: BaseException) -> str:
    return (str(exc).splitlines() or [type(exc).__name__])[0][:300]
