"""Write rows of results as Parquet, some at a time: text and whole numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import IO, Any

from producer.bulk import parquet_library

# A row group; readers skip and decode one at a time.
_GROUP_ROWS = 5_000


def write_rows(
    rows: Iterable[Sequence[str | int | None]], stream: IO[bytes], *, columns: Sequence[tuple[str, type]], file: str
) -> int:
    """Write rows of these columns, each text (str) or a whole number (int), and return how many there were.

    At most _GROUP_ROWS of them are in memory. InputError without the library.
    """
    pa = parquet_library.load(file=file)
    schema = pa.schema([(name, pa.int64() if kind is int else pa.string()) for name, kind in columns])
    count = 0
    left = iter(rows)
    with pa.parquet.ParquetWriter(stream, schema, compression="zstd", write_page_checksum=True) as writer:
        while group := list(islice(left, _GROUP_ROWS)):
            arrays = [
                pa.array(values if kind is int else map(_encodable, values), type=field.type)
                for values, (_, kind), field in zip(zip(*group, strict=True), columns, schema, strict=True)
            ]
            writer.write_batch(pa.record_batch(arrays, schema=schema))
            count += len(group)
    return count


def _encodable(value: Any) -> str | None:
    """Return the text with half surrogate pairs written as escapes: one must not cost the whole file."""
    if value is None:
        return None
    text = str(value)
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()
