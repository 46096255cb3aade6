"""A file of rows that is sent to us: spooled to disk in constant memory, whatever its size, and gone after the request.

It comes as the body itself, or as the part `file` of a form. What breaks off leaves nothing.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import anyio
from anyio import to_thread
from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect

from producer.gateway.problem import Kind, Problem

FORM = "multipart/form-data"
# How a file is read, by the type with which it comes.
SUFFIXES = {
    "text/csv": ".csv",
    "application/csv": ".csv",
    "application/x-ndjson": ".jsonl",
    "application/ndjson": ".jsonl",
    "application/jsonl": ".jsonl",
}
_FIELDS_MAX = 20
_FIELD_MAX_BYTES = 16 * 1024
_NAME_MAX_CHARS = 200


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that came whole: where it lies during the request, what it is called, and the form's other fields."""

    path: Path
    name: str
    sha256: str
    fields: dict[str, str] = field(default_factory=dict)


def media_type_of(request: Request) -> str:
    """Return the type of the body, without its parameters."""
    return request.headers.get("content-type", "").split(";")[0].strip().lower()


@asynccontextmanager
async def spooled(request: Request) -> AsyncIterator[Upload]:
    """Yield the file that the request brings; Problem 400 or 415 for one that cannot be taken.

    How large it may be is seen to before (http/limits.py).
    """
    try:
        async with anyio.TemporaryDirectory(prefix="assistq-upload-") as directory:
            if media_type_of(request) == FORM:
                yield await _from_form(request, Path(directory))
            else:
                yield await _from_body(request, Path(directory))
    except ClientDisconnect as exc:
        # Nobody hears it, but the log has no crash.
        raise Problem(Kind.BAD_REQUEST, "the upload broke off; nothing was enqueued", code="upload_broken") from exc


async def bounded_body(request: Request, *, max_bytes: int) -> bytes:
    """Return the whole body; Problem 413 for a larger one, which only a file may be."""
    told = request.headers.get("content-length", "")
    if told.isdecimal() and len(told) < 20 and int(told) > max_bytes:
        raise _too_large(max_bytes)
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > max_bytes:
                raise _too_large(max_bytes)
    except ClientDisconnect as exc:
        raise Problem(Kind.BAD_REQUEST, "the body broke off", code="body_broken") from exc
    return bytes(body)


async def _from_body(request: Request, directory: Path) -> Upload:
    suffix = SUFFIXES.get(media_type_of(request))
    if suffix is None:
        raise _unsupported(media_type_of(request))
    if request.headers.get("content-encoding", "identity") != "identity":
        raise Problem(Kind.UNSUPPORTED_MEDIA, "send the file without a Content-Encoding", code="unsupported_encoding")
    path = directory / f"rows{suffix}"
    digest = hashlib.sha256()
    async with await anyio.open_file(path, "wb") as out:
        async for chunk in request.stream():
            digest.update(chunk)
            await out.write(chunk)
    return Upload(path=path, name=path.name, sha256=digest.hexdigest())


async def _from_form(request: Request, directory: Path) -> Upload:
    async with request.form(max_files=1, max_fields=_FIELDS_MAX, max_part_size=_FIELD_MAX_BYTES) as form:
        fields = {key: value for key, value in form.items() if isinstance(value, str)}
        sent = form.get("file")
        if not isinstance(sent, UploadFile):
            raise Problem(
                Kind.BAD_REQUEST, "the form has no part `file` with a filename", code="file_missing", param="file"
            )
        name = PurePath(sent.filename or "").name[:_NAME_MAX_CHARS] or "file"
        suffix = PurePath(name).suffix.lower()
        if suffix == ".ndjson":
            suffix = ".jsonl"
        if suffix not in SUFFIXES.values():
            suffix = SUFFIXES.get((sent.content_type or "").split(";")[0].strip().lower(), "")
        if not suffix:
            raise _unsupported(sent.content_type or name)
        path = directory / f"rows{suffix}"
        digest = await to_thread.run_sync(_copied, sent.file, path)
    return Upload(path=path, name=name, sha256=digest, fields=fields)


def _copied(source: Any, path: Path) -> str:
    with path.open("w+b") as out:
        shutil.copyfileobj(source, out)
        out.seek(0)
        return hashlib.file_digest(out, "sha256").hexdigest()


def _too_large(max_bytes: int) -> Problem:
    return Problem(
        Kind.TOO_LARGE, f"the body has more than {max_bytes:,} bytes; send it in parts", code="body_too_large"
    )


def _unsupported(what: str) -> Problem:
    return Problem(
        Kind.UNSUPPORTED_MEDIA,
        f"a body of type '{what[:100]}' cannot be taken; send application/json, text/csv, application/x-ndjson, or "
        f"multipart/form-data with a part `file` named .csv or .jsonl",
        code="unsupported_media_type",
    )
