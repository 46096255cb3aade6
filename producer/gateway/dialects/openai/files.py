"""OpenAI's files, as far as batches need them: requests are uploaded, answers are downloaded."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from starlette.datastructures import FormData, UploadFile

from producer.gateway.access import Caller, caller
from producer.gateway.dialects.openai.batching.request_lines import MAX_FILE_BYTES
from producer.gateway.dialects.openai.batching.result_files import PURPOSE as OUTPUT_PURPOSE
from producer.gateway.dialects.openai.errors import OPENAI_ERRORS
from producer.gateway.files import NewFile, pieces_of
from producer.gateway.http.strict_json import StrictJsonRoute
from producer.gateway.keys import Scope
from producer.gateway.parts import Parts, parts_of
from producer.gateway.problem import Kind, Problem
from schemas.tables import StoredFile

router = APIRouter(route_class=StrictJsonRoute, tags=["OpenAI"], responses=OPENAI_ERRORS)

INPUT_PURPOSE = "batch"
_PURPOSES = (INPUT_PURPOSE, OUTPUT_PURPOSE)
_EXPIRES_AFTER_S = range(3600, 30 * 24 * 3600 + 1)
_LIST_AT_MOST = 10_000
_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": [INPUT_PURPOSE]},
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {
                            "type": "integer",
                            "minimum": _EXPIRES_AFTER_S.start,
                            "maximum": _EXPIRES_AFTER_S.stop - 1,
                        },
                    },
                }
            }
        },
    }
}


class FileObject(BaseModel):
    """OpenAI's `file`; times are seconds since the epoch."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"
    status_details: None = None


class FileList(BaseModel):
    """A page of files."""

    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(BaseModel):
    """That a file is gone."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


@router.post("/v1/files", openapi_extra=_FORM)
async def create_file(request: Request, caller: Annotated[Caller, Depends(caller(Scope.RUN))]) -> FileObject:
    """Upload a file of requests for a batch: JSONL, a request to a line."""
    parts = parts_of(request)
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise Problem(Kind.UNSUPPORTED_MEDIA, "send the file as multipart/form-data", code="invalid_content_type")
    # Parsed only now, when it is known who sends it; what is large waits in a temporary file.
    async with request.form(max_files=1, max_fields=20) as form:
        upload = form.get("file")
        if not isinstance(upload, UploadFile):
            raise _missing("file", "the file itself, with a filename")
        purpose = form.get("purpose")
        if purpose != INPUT_PURPOSE:
            raise _missing("purpose", f"'{INPUT_PURPOSE}'; files are kept for batches alone")
        expires_at = _expires_at(form)
        new = NewFile(
            id=f"file-{uuid.uuid4().hex}",
            workspace=caller.workspace,
            purpose=INPUT_PURPOSE,
            filename=upload.filename or "file",
            mime_type="application/jsonl",
            expires_at=expires_at,
            assistants=caller.made_with,
        )
        max_bytes = min(MAX_FILE_BYTES, parts.settings.http_max_upload_bytes)
        file = await parts.files.save(new, pieces_of(upload), max_bytes=max_bytes, in_thread=parts.in_thread_to_its_end)
    return _told(file)


@router.get("/v1/files")
async def list_files(
    request: Request,
    caller: Annotated[Caller, Depends(caller(Scope.READ))],
    purpose: str | None = None,
    limit: Annotated[int, Query(ge=1, le=_LIST_AT_MOST)] = _LIST_AT_MOST,
    after: str | None = None,
    order: Literal["asc", "desc"] = "desc",
) -> FileList:
    """List the files for batches that the key sees."""
    parts = parts_of(request)
    if after is not None and not after.isprintable():
        raise Problem(Kind.BAD_REQUEST, f"after: there is no file {after!r}", param="after")
    purposes = _PURPOSES if purpose is None else [each for each in _PURPOSES if each == purpose]
    files, has_more = await parts.in_thread(
        parts.files.page,
        caller.workspace,
        purposes=purposes,
        limit=limit,
        after=after,
        oldest_first=order == "asc",
        assistants=caller.assistants,
    )
    data = [_told(file) for file in files]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return FileList(data=data, first_id=first, last_id=last, has_more=has_more)


@router.get("/v1/files/{file_id}")
async def retrieve_file(
    file_id: str, request: Request, caller: Annotated[Caller, Depends(caller(Scope.READ))]
) -> FileObject:
    """Return what is known of a file."""
    return _told(await file_for_batches(parts_of(request), caller, file_id))


@router.get(
    "/v1/files/{file_id}/content",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}},
)
async def file_content(
    file_id: str, request: Request, caller: Annotated[Caller, Depends(caller(Scope.READ))]
) -> StreamingResponse:
    """Return the bytes of a file."""
    parts = parts_of(request)
    file = await file_for_batches(parts, caller, file_id)
    headers = {
        "content-length": str(file.size_bytes),
        "content-disposition": f'attachment; filename="{file.id}.jsonl"',
        "x-content-type-options": "nosniff",
    }
    return StreamingResponse(parts.files.content(file), headers=headers, media_type="application/octet-stream")


@router.delete("/v1/files/{file_id}")
async def delete_file(
    file_id: str, request: Request, caller: Annotated[Caller, Depends(caller(Scope.RUN))]
) -> FileDeleted:
    """Delete a file; a batch that has not read it to its end fails."""
    parts = parts_of(request)
    file = await file_for_batches(parts, caller, file_id)
    if not await parts.in_thread(parts.files.delete, caller.workspace, file.id):
        raise _unknown(file_id)
    return FileDeleted(id=file.id)


async def file_for_batches(parts: Parts, caller: Caller, file_id: str, *, param: str | None = None) -> StoredFile:
    """Return the file of this id; Problem 404 for one that the key does not see, or that is for something else."""
    # What is not printable no id is, and PostgreSQL would refuse the question.
    file = None
    if file_id.isprintable():
        file = await parts.in_thread(parts.files.get, caller.workspace, file_id, assistants=caller.assistants)
    if file is None or file.purpose not in _PURPOSES:
        raise _unknown(file_id, param=param)
    return file


def _expires_at(form: FormData) -> datetime | None:
    anchor, seconds = form.get("expires_after[anchor]"), form.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise _missing("expires_after[anchor]", "'created_at'")
    # Digits of ASCII, few enough for int().
    if not isinstance(seconds, str) or not (seconds.isascii() and seconds.isdigit() and len(seconds) < 10):
        raise _missing("expires_after[seconds]", "a number of seconds")
    if int(seconds) not in _EXPIRES_AFTER_S:
        bounds = f"{_EXPIRES_AFTER_S.start:,} to {_EXPIRES_AFTER_S.stop - 1:,}"
        raise _missing("expires_after[seconds]", f"{bounds} seconds")
    return datetime.now(UTC) + timedelta(seconds=int(seconds))


def _missing(field: str, what: str) -> Problem:
    return Problem(Kind.BAD_REQUEST, f"{field}: must be {what}", code="invalid_request", param=field)


def _unknown(file_id: str, *, param: str | None = None) -> Problem:
    return Problem(Kind.NOT_FOUND, f"No such File object: {file_id}", code="file_not_found", param=param or "file_id")


def _told(file: StoredFile) -> FileObject:
    return FileObject(
        id=file.id,
        bytes=file.size_bytes,
        created_at=int(file.created_at.timestamp()),
        expires_at=None if file.expires_at is None else int(file.expires_at.timestamp()),
        filename=file.filename,
        purpose=file.purpose,
    )
