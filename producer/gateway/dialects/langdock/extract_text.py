"""The text of a PDF or DOCX: a program of its own, for whoever wrote the file may have meant harm.

`extract_text.py pdf|docx MAX_CHARS` reads the file from standard input and writes `{"text": …}` or `{"error": …}`. Its
memory and its time are bounded; whatever happens to it, the gateway goes on. It imports nothing of the project.
"""

from __future__ import annotations

import io
import json
import logging
import resource
import sys
import zipfile
from collections.abc import Iterator
from contextlib import suppress

CPU_S = 20
_MEMORY_BYTES = 1024 * 1024 * 1024
_UNPACKED_BYTES = 256 * 1024 * 1024
_PAGES = 5_000


class Unreadable(Exception):  # noqa: N818 - what the file is
    """Nothing can be read out of the file; the message says why, and how to mend it."""


def main() -> None:
    """Read, extract, answer."""
    kind, max_chars = sys.argv[1], int(sys.argv[2])
    logging.disable()
    try:
        found = {"text": text_of(kind, sys.stdin.buffer.read(), max_chars=max_chars)}
    except Unreadable as exc:
        found = {"error": str(exc)}
    except Exception:  # noqa: BLE001 - these libraries raise anything on a broken file
        found = {"error": f"it is no {kind.upper()} that can be read"}
    sys.stdout.write(json.dumps(found))


def text_of(kind: str, content: bytes, *, max_chars: int) -> str:
    """Return the first `max_chars` characters of the file's text; Unreadable, or any error of the libraries."""
    pieces = _pages_of_pdf if kind == "pdf" else _blocks_of_docx
    # What is imported is not the file's doing.
    _load(kind)
    _bound()
    text, length = [], 0
    for piece in pieces(content):
        text.append(piece)
        length += len(piece) + 1
        if length > max_chars:
            break
    return "\n".join(text).strip("\n")[:max_chars]


def _load(kind: str) -> None:
    if kind == "pdf":
        import pypdf  # noqa: F401, PLC0415 - one of the two is needed
    else:
        import docx  # noqa: F401, PLC0415


def _bound() -> None:
    bounds = (
        (resource.RLIMIT_AS, _MEMORY_BYTES),
        (resource.RLIMIT_CPU, CPU_S),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
    )
    for what, limit in bounds:
        # Not every system knows each of them.
        with suppress(OSError, ValueError):
            resource.setrlimit(what, (limit, limit))


def _pages_of_pdf(content: bytes) -> Iterator[str]:
    from pypdf import PdfReader  # noqa: PLC0415

    reader = PdfReader(io.BytesIO(content))
    if reader.is_encrypted and not reader.decrypt(""):
        raise Unreadable("it is a PDF with a password; send it without one")
    for number, page in enumerate(reader.pages):
        if number == _PAGES:
            return
        yield page.extract_text()


def _blocks_of_docx(content: bytes) -> Iterator[str]:
    from docx import Document  # noqa: PLC0415
    from docx.table import Table  # noqa: PLC0415

    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > _UNPACKED_BYTES:
            raise Unreadable(f"unpacked it has more than {_UNPACKED_BYTES // 2**20} MiB")
    for block in Document(io.BytesIO(content)).iter_inner_content():
        if isinstance(block, Table):
            for row in block.rows:
                yield "\t".join(cell.text for cell in row.cells)
        else:
            yield block.text


if __name__ == "__main__":
    main()
