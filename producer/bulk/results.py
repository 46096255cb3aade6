"""Write results as CSV or JSON Lines, one line for each job."""

from __future__ import annotations

import csv
import json
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

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

ResultsFormat = Literal["csv", "jsonl"]


# `format` is the name that the command line uses.
def write_results(results: Iterable[JobResult], out: IO[str] | Path, *, format: ResultsFormat) -> int:  # noqa: A002
    """Write results in the order given and return how many there were.

    To a path the file appears whole or not at all: it is written beside its place and then
    moved there; InputError if it cannot be. A stream should not translate line ends, which
    are LF. In CSV None is empty, text stands as it is and any other output is JSON; a value
    that begins with `=` is not changed, though a spreadsheet may take it for a formula.
    """
    write = _write_csv if format == "csv" else _write_jsonl
    if not isinstance(out, Path):
        return write(results, out)
    with _replacing(out) as stream:
        return write(results, stream)


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


def _values(result: JobResult) -> dict[str, Any]:
    values = {column: getattr(result, column) for column in COLUMNS}
    values["status"] = result.status.value
    return values


def _cell(output: Any) -> str | None:
    return output if output is None or isinstance(output, str) else _json(output)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


@contextmanager
def _replacing(path: Path) -> Iterator[IO[str]]:
    """Open a file that takes the place of `path` when all went well, and else leaves no trace."""
    file = str(path)
    target = path.resolve()
    if target.is_dir():
        raise InputError("is a directory", file=file, mend="name a file in it")
    if target.exists() and not target.is_file():
        with _opened(target, "w", file=file) as stream:  # a terminal or a pipe has no place to take
            yield stream
        return
    beside = target.with_name(f".{target.name[:200]}.{secrets.token_hex(6)}.part")
    with _opened(beside, "x", file=file) as stream:
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


def _opened(path: Path, mode: Literal["w", "x"], *, file: str) -> IO[str]:
    try:
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
