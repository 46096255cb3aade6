"""The physical lines of a file of rows: UTF-8, numbered, never more in memory than one row may take."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, NoReturn

from schemas import InputError

FIELD_MAX_BYTES = 1_048_576
# All fields of one row together.
ROW_MAX_BYTES = 16 * FIELD_MAX_BYTES

_SKIP_BYTES = 64 * 1024


class RowTooLongError(Exception):
    """The row that is being read has passed ROW_MAX_BYTES; `row_text` holds what was read of it."""


class Lines(Iterator[str]):
    """Gives one physical line after the other, line end included; a byte order mark is dropped.

    `number` is the number of the last line given, from 1. `row_text` and `row_bytes` are
    what was given since `begin_row()`. `column_at` names the column in which a row's text
    ends; the reader of the rows sets it, and error messages use it.
    """

    def __init__(self, stream: BinaryIO, *, file: str) -> None:
        """Read from a binary stream that stands at its beginning; `file` is its name in messages."""
        self.number = 0
        self.row_bytes = 0
        self.column_at: Callable[[str], str | None] = lambda _: None
        self._stream = stream
        self._file = file
        self._row: list[str] = []
        self._offset = 0
        self.cut = False

    @property
    def row_text(self) -> str:
        """Return the text of the row so far."""
        return "".join(self._row)

    def begin_row(self) -> None:
        """Forget the last row; the next line begins a new one."""
        self._row.clear()
        self.row_bytes = 0

    def __next__(self) -> str:
        """Return the next line.

        Raises InputError for a byte that is not UTF-8 and for a NUL, RowTooLongError when
        the row passes ROW_MAX_BYTES; then the rest of the line is left to `skip()`.
        """
        raw = self._stream.readline(ROW_MAX_BYTES + 1 - self.row_bytes)
        if not raw:
            raise StopIteration
        self.number += 1
        self.row_bytes += len(raw)
        if self.row_bytes > ROW_MAX_BYTES:
            self._offset += len(raw)
            self.cut = not raw.endswith(b"\n")
            self._row.append(raw.decode("utf-8", errors="replace"))
            raise RowTooLongError
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as exc:
            self._refuse_encoding(raw, exc)
        if "\0" in text:
            self._refuse_nul(raw)
        if self.number == 1 and text.startswith("\ufeff"):
            text = text[1:]
        self._offset += len(raw)
        self._row.append(text)
        return text

    def skip(self) -> tuple[int, int]:
        """Pass over a piece of what is left of a cut line, else of the next line, without keeping it.

        `cut` is then whether more of that line is left. Returns how many bytes and how many
        quote characters the piece had; (0, 0) at the end of the file.
        """
        chunk = self._stream.readline(_SKIP_BYTES)
        if chunk and not self.cut:
            self.number += 1
        self.cut = bool(chunk) and not chunk.endswith(b"\n")
        self._offset += len(chunk)
        return len(chunk), chunk.count(b'"')

    def _refuse_encoding(self, raw: bytes, exc: UnicodeDecodeError) -> NoReturn:
        utf16 = self.number == 1 and raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        source = "UTF-16" if utf16 else "WINDOWS-1252"
        raise InputError(
            f"not UTF-8{', but UTF-16' if utf16 else ''}: byte 0x{raw[exc.start]:02x} at offset "
            f"{self._offset + exc.start:,} of the file, byte {exc.start + 1:,} of the line",
            file=self._file,
            line=self.number,
            column=self.column_at(self.row_text + raw[: exc.start].decode("utf-8", errors="replace")),
            mend=f"convert the file, for example with `iconv -f {source} -t UTF-8 FILE > NEW`",
        ) from exc

    def _refuse_nul(self, raw: bytes) -> NoReturn:
        position = raw.index(b"\0")
        raise InputError(
            f"a NUL byte at offset {self._offset + position:,} of the file, byte {position + 1:,} of the line",
            file=self._file,
            line=self.number,
            column=self.column_at(self.row_text + raw[:position].decode("utf-8", errors="replace")),
            mend="save the file as UTF-8 text, or remove NUL bytes with `tr -d '\\000' < FILE > NEW`",
        )


@contextmanager
def open_input(path: Path) -> Iterator[BufferedReader]:
    """Open a file for reading bytes; InputError says why it cannot be."""
    file = str(path)
    try:
        stream = path.open("rb")
    except FileNotFoundError as exc:
        raise InputError("no such file", file=file, mend="check the path") from exc
    except IsADirectoryError as exc:
        raise InputError("is a directory", file=file, mend="name a CSV, JSONL or Parquet file in it") from exc
    except OSError as exc:
        raise InputError(
            f"cannot be read: {exc.strerror}", file=file, mend="check the path and its permissions"
        ) from exc
    with stream:
        yield stream
