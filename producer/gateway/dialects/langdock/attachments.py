"""Langdock's attachments: files whose text, or image, a message or an assistant brings along (CONTRACT.md 3.6)."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Literal
from uuid import UUID

import anyio
from anyio import CapacityLimiter
from fastapi import APIRouter, Request
from pydantic import BaseModel
from python_multipart.exceptions import FormParserError
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from producer.gateway.access import Caller, Runs
from producer.gateway.dialects.langdock.attached import PURPOSE
from producer.gateway.dialects.langdock.attachment_kinds import ATTACHMENT_MAX_BYTES, content_of
from producer.gateway.dialects.langdock.errors import attachment_errors
from producer.gateway.files import Files, NewFile, pieces_of
from producer.gateway.http.strict_json import StrictJsonRoute
from producer.gateway.parts import parts_of
from producer.gateway.problem import Kind, Problem

router = APIRouter(route_class=StrictJsonRoute, tags=["Langdock"])

# Of other people's files at once: each may take a processor and a GiB.
_READINGS = CapacityLimiter(2)
# Boundaries and headers round the file.
_ENVELOPE_BYTES = 64 * 1024
_FILE_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {"type": "string", "format": "binary"}},
                }
            }
        },
    }
}


class UploadedFile(BaseModel):
    """What was stored."""

    name: str
    mimeType: str  # noqa: N815 - Langdock's name
    sizeInBytes: int  # noqa: N815


class Uploaded(BaseModel):
    """The new attachment."""

    attachmentId: UUID  # noqa: N815
    file: UploadedFile


class DeleteRequest(BaseModel):
    """Which attachment goes."""

    attachmentId: UUID  # noqa: N815


class Deleted(BaseModel):
    """The attachment is gone."""

    success: Literal[True]
    message: str
    attachmentId: UUID  # noqa: N815


@router.post("/attachment/v1/upload", responses=attachment_errors(400, 413), openapi_extra=_FILE_BODY)
async def upload_attachment(request: Request, caller: Runs) -> Uploaded:
    """Store a file of text, a CSV, PDF, DOCX or image, and read what is in it."""
    parts = parts_of(request)
    max_bytes = min(ATTACHMENT_MAX_BYTES, parts.settings.http_max_upload_bytes)
    async with _form_of(request, max_bytes=max_bytes) as form:
        file = _the_file(form)
        filename, size_bytes = (file.filename or "file")[:512], file.size or 0
        if size_bytes > max_bytes:
            raise _too_large(max_bytes)
        read = partial(content_of, file.file, filename=filename, claimed_type=file.content_type, size_bytes=size_bytes)
        content = await anyio.to_thread.run_sync(read, limiter=_READINGS)
        await file.seek(0)
        new = NewFile(
            id=str(uuid.uuid4()),
            workspace=caller.workspace,
            purpose=PURPOSE,
            filename=filename,
            mime_type=content.mime_type,
            text=content.text,
            assistants=caller.made_with,
        )
        stored = await parts.files.save(new, pieces_of(file), max_bytes=max_bytes, in_thread=parts.in_thread_to_its_end)
    return Uploaded(
        attachmentId=UUID(stored.id),
        file=UploadedFile(name=stored.filename, mimeType=stored.mime_type, sizeInBytes=stored.size_bytes),
    )


@router.delete("/attachment/v1/delete", responses=attachment_errors(400, 404))
async def delete_attachment(body: DeleteRequest, request: Request, caller: Runs) -> Deleted:
    """Delete an attachment: conversations that were had keep what they were sent of it."""
    parts = parts_of(request)
    if not await parts.in_thread(_delete, parts.files, caller, str(body.attachmentId)):
        raise Problem(Kind.NOT_FOUND, f"there is no attachment {body.attachmentId}", code="attachment_not_found")
    return Deleted(success=True, message="Attachment deleted successfully", attachmentId=body.attachmentId)


def _delete(files: Files, caller: Caller, attachment_id: str) -> bool:
    seen = files.get(caller.workspace, attachment_id, assistants=caller.assistants)
    return seen is not None and seen.purpose == PURPOSE and files.delete(caller.workspace, attachment_id)


@asynccontextmanager
async def _form_of(request: Request, *, max_bytes: int) -> AsyncIterator[FormData]:
    """Yield the form, whose file is on disk if it is large; Problem 400 for what is none, 413 for a large body."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise _bad("send multipart/form-data with one field `file`")
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > max_bytes + _ENVELOPE_BYTES:
        raise _too_large(max_bytes)
    parser = MultiPartParser(request.headers, _body(request, max_bytes), max_files=2, max_fields=20)
    try:
        form = await parser.parse()
    except (MultiPartException, FormParserError, KeyError, UnicodeError) as exc:
        raise _bad(f"the body is no multipart form that can be read, with one file: {exc}") from exc
    except ClientDisconnect as exc:
        raise _bad("the client has gone") from exc
    try:
        yield form
    finally:
        await form.close()


async def _body(request: Request, max_bytes: int) -> AsyncGenerator[bytes]:
    left = max_bytes + _ENVELOPE_BYTES
    async for piece in request.stream():
        left -= len(piece)
        if left < 0:
            raise _too_large(max_bytes)
        yield piece


def _the_file(form: FormData) -> UploadFile:
    files: list[Any] = [(name, value) for name, value in form.multi_items() if isinstance(value, UploadFile)]
    if not files:
        raise _bad("there is no file; send it as the field `file`, with a file name")
    if len(files) > 1 or files[0][0] != "file":
        raise _bad("send exactly one file, as the field `file`")
    return files[0][1]  # type: ignore[no-any-return]


def _bad(message: str) -> Problem:
    return Problem(Kind.BAD_REQUEST, message, code="invalid_upload", param="file")


def _too_large(max_bytes: int) -> Problem:
    return Problem(
        Kind.TOO_LARGE, f"an attachment has at most {max_bytes:,} bytes; send a smaller one", code="file_too_large"
    )
