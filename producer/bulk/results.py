"""Write results as CSV, JSON Lines or Parquet, one row for each job."""

from __future__ import annotations

import csv
import json
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

from producer.bulk import parquet_library
from producer.bulk.parquet_results import write_rows
from schemas import InputError, JobResult

COLUMNS = (
    "custom_id",
    "job_id",
    "status",
    "output",
    "thread_id",
    "model",
    "prompt_tokens",
    "completion_tokens",
    "attempts",
    "error_code",
    "error",
)

ResultsFormat = Literal["csv", "jsonl", "parquet"]
FORMATS: dict[str, ResultsFormat] = {".csv": "csv", ".jsonl": "jsonl", ".parquet": "parquet"}


# `format` is the name that the command line uses.
def write_results(results: Iterable[JobResult], out: IO[Any] | Path, *, format: ResultsFormat) -> int:  # noqa: A002
    """Write results in the order given, holding few of them, and return how many there were.

    To a path the file appears whole or not at all: it is written beside its place and then
    moved there; InputError if it cannot be. A stream should not translate line ends, which
    are LF; for Parquet it takes bytes. In CSV and Parquet text stands as it is and any other output is JSON;
    None is empty in CSV and null in Parquet. A value that begins with `=` is not changed, though
    a spreadsheet may take it for a formula.
    """
    if not isinstance(out, Path):
        return _WRITERS[format](results, out)
    if format == "parquet":
        parquet_library.load(file=str(out))
    with _replacing(out, binary=format == "parquet") as stream:
        return _WRITERS[format](results, stream)


def _write_csv(results: Iterable[JobResult], stream: IO[str]) -> int:
    writer = csv.writer(stream, lineterminator="\n")
    # Before Python 3.13 the csv module leaves a lone carriage return unquoted.
    quoting_writer = csv.writer(stream, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerow(COLUMNS)
    count = 0
    for result in results:
        values = _values(result)
        values["output"] = _cell(values["output"])
        fields = ["" if value is None else str(value) for value in values.values()]
        (quoting_writer if any("\r" in field for field in fields) else writer).writerow(fields)
        count += 1
    return count


def _write_jsonl(results: Iterable[JobResult], stream: IO[str]) -> int:
    count = 0
    for result in results:
        stream.write(_json(_values(result)) + "\n")
        count += 1
    return count


def _write_parquet(results: Iterable[JobResult], stream: IO[bytes]) -> int:
    fields = JobResult.model_fields
    columns = [(name, int if name in fields and fields[name].annotation is int else str) for name in COLUMNS]
    rows = (tuple({**values, "output": _cell(values["output"])}.values()) for values in map(_values, results))
    return write_rows(rows, stream, columns=columns, file=str(getattr(stream, "name", "results")))


_WRITERS: dict[ResultsFormat, Callable[[Iterable[JobResult], IO[Any]], int]] = {
    "csv": _write_csv,
    "jsonl": _write_jsonl,
    "parquet": _write_parquet,
}


def _values(result: JobResult) -> dict[str, Any]:
    values = {column: getattr(result, column) for column in COLUMNS}
    values["status"] = result.status.value
    return values


def _cell(output: Any) -> str | None:
    return output if output is None or isinstance(output, str) else _json(output)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


@contextmanager
def _replacing(path: Path, *, binary: bool) -> Iterator[IO[Any]]:
    """Open a file that takes the place of `path` when all went well, and else leaves no trace."""
    file = str(path)
    target = path.resolve()
    if target.is_dir():
        raise InputError("is a directory", file=file, mend="name a file in it")
    if target.exists() and not target.is_file():
        with _opened(target, "w", binary=binary, file=file) as stream:  # a terminal or a pipe has no place to take
            yield stream
        return
    beside = target.with_name(f".{target.name[:200]}.{secrets.token_hex(6)}.part")
    with _opened(beside, "x", binary=binary, file=file) as stream:
        try:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
            beside.replace(target)
        except BaseException as exc:
            beside.unlink(missing_ok=True)
            if isinstance(exc, OSError):
                raise _refused(exc, file=file) from exc
            raise


def _opened(path: Path, mode: Literal["w", "x"], *, binary: bool, file: str) -> IO[Any]:
    try:
        if binary:
            return path.open(f"{mode}b")
        # Half a surrogate pair in a reply must not cost the whole file of results.
        return path.open(mode, encoding="utf-8", errors="backslashreplace", newline="")
    except FileNotFoundError as exc:
        raise InputError(
            f"there is no directory {path.parent}", file=file, mend="create it, or choose another path"
        ) from exc
    except OSError as exc:
        raise _refused(exc, file=file) from exc


def _refused(exc: OSError, *, file: str) -> InputError:
    return InputError(
        f"cannot be written: {exc.strerror or exc}", file=file, mend="choose another path, or mend what is in the way"
    )
