"""What kind of file an attachment is, by its bytes, and what text is in it."""

from __future__ import annotations

import codecs
import json
import mimetypes
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from producer.gateway.problem import Kind, Problem

ATTACHMENT_MAX_BYTES = 20 * 1024 * 1024
IMAGE_MAX_BYTES = 5 * 1024 * 1024
# What a model gets of one file; tokens are about a quarter of it.
TEXT_MAX_CHARS = 200_000
EXTRACTION_TIMEOUT_S = 30.0
CUT = f"\n[cut: of this file only the first {TEXT_MAX_CHARS:,} characters are given]"

_DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
_PROGRAM = Path(__file__).with_name("extract_text.py")
_TAKEN = "text, CSV, PDF, DOCX, PNG, JPEG, GIF and WebP are taken"
_MIME_TYPE = re.compile(r"[a-z]+/[A-Za-z0-9.+-]{1,100}")
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# Binary formats begin so, or hold these; text holds no control characters but white space.
_NOT_IN_TEXT = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]")

_IMAGES: tuple[tuple[str, Callable[[bytes], bool]], ...] = (
    ("image/png", lambda head: head.startswith(b"\x89PNG\r\n\x1a\n")),
    ("image/jpeg", lambda head: head.startswith(b"\xff\xd8\xff")),
    ("image/gif", lambda head: head.startswith((b"GIF87a", b"GIF89a"))),
    ("image/webp", lambda head: head.startswith(b"RIFF") and head[8:12] == b"WEBP"),
)


@dataclass(frozen=True, slots=True)
class Content:
    """What an attachment is; `text` is None for an image."""

    mime_type: str
    text: str | None


def content_of(file: BinaryIO, *, filename: str, claimed_type: str | None, size_bytes: int) -> Content:
    """Return what the file is and says; Problem 400 for one that is not taken or cannot be read, 413 for its size.

    For a thread: it may take EXTRACTION_TIMEOUT_S. `file` is one that has a descriptor.
    """
    head = _head_of(file)
    image = next((mime_type for mime_type, is_it in _IMAGES if is_it(head)), None)
    if image is not None:
        if size_bytes > IMAGE_MAX_BYTES:
            raise Problem(
                Kind.TOO_LARGE,
                f"an image has at most {IMAGE_MAX_BYTES:,} bytes; make it smaller",
                code="file_too_large",
            )
        return Content(image, None)
    if head.startswith(b"%PDF-"):
        return Content("application/pdf", _extracted("pdf", file, filename))
    if head.startswith(b"PK\x03\x04") and filename.lower().endswith(".docx"):
        return Content(_DOCX, _extracted("docx", file, filename))
    text = _plain(head, is_whole=size_bytes <= len(head))
    if text is None:
        raise _refused(filename, f"is of no kind that can be read; {_TAKEN}")
    return Content(_text_type(filename, claimed_type), _bounded(text))


def _head_of(file: BinaryIO) -> bytes:
    file.seek(0)
    # UTF-8 takes up to four bytes a character.
    return file.read(4 * (TEXT_MAX_CHARS + 1))


def _plain(head: bytes, *, is_whole: bool) -> str | None:
    """Return the head as text, None if it is none: UTF-8, UTF-16 with its mark, or Windows's Western code page."""
    for encoding in ("utf-16",) if head.startswith(_UTF_16) else ("utf-8-sig", "cp1252"):
        try:
            text = codecs.getincrementaldecoder(encoding)().decode(head, is_whole)
        except UnicodeDecodeError:
            continue
        return None if _NOT_IN_TEXT.search(text) else text
    return None


def _text_type(filename: str, claimed_type: str | None) -> str:
    for mime_type in (claimed_type, mimetypes.guess_type(filename)[0]):
        if mime_type and _MIME_TYPE.fullmatch(mime_type) and mime_type != "application/octet-stream":
            return mime_type
    return "text/plain"


def _bounded(text: str) -> str:
    return text if len(text) <= TEXT_MAX_CHARS else text[:TEXT_MAX_CHARS] + CUT


def _extracted(kind: str, file: BinaryIO, filename: str) -> str:
    """Return the text by a program of its own, which has nothing of the gateway's environment."""
    file.seek(0)
    # The descriptor's own place, which what was read ahead has moved.
    os.lseek(file.fileno(), 0, os.SEEK_SET)
    command = [sys.executable, "-I", "-B", str(_PROGRAM), kind, str(TEXT_MAX_CHARS + 1)]
    try:
        ended = subprocess.run(  # noqa: S603 - a program of ours; the file is its input
            command, stdin=file, capture_output=True, env={}, timeout=EXTRACTION_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as exc:
        raise _refused(filename, f"took more than {EXTRACTION_TIMEOUT_S:g} s to read; send its text") from exc
    try:
        found = json.loads(ended.stdout)
    except ValueError as exc:
        raise _refused(filename, "takes more time or memory to read than a file may; send its text") from exc
    if "error" in found:
        raise _refused(filename, f"could not be read: {found['error']}")
    return _bounded(found["text"])


def _refused(filename: str, why: str) -> Problem:
    return Problem(Kind.BAD_REQUEST, f"file '{filename[:200]}' {why}", code="file_not_readable", param="file")
