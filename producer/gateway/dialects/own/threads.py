"""Our own API: threads and their messages."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel, Field

from producer.gateway.access import Caller, Reads, Runs
from producer.gateway.dialects.own.continued_threads import unknown_thread
from producer.gateway.dialects.own.jobs import ID_PATTERN
from producer.gateway.dialects.own.pages import Cursor, Limit, Page, Place, page_of, place_of
from producer.gateway.dialects.own.problem_details import PROBLEMS
from producer.gateway.dialects.own.thread_records import ThreadRecords
from producer.gateway.http.strict_json import StrictJsonRoute
from producer.gateway.parts import Parts, parts_of
from producer.gateway.thread_messages import ThreadMessages
from producer.gateway.threads import Threads
from schemas.tables import Thread, ThreadMessage

router = APIRouter(route_class=StrictJsonRoute, tags=["Threads"], responses=PROBLEMS)

ThreadId = Annotated[str, Path(pattern=ID_PATTERN)]


class ThreadView(BaseModel):
    """A conversation; `metadata` is what its owner keeps with it."""

    id: str
    metadata: dict[str, Any] | None
    created_at: datetime


class MessageView(BaseModel):
    """A message of a thread, in OpenAI's form; `position` orders the messages of a thread."""

    position: int
    message: dict[str, Any]
    metadata: dict[str, Any] | None
    job_id: str | None = Field(description="the job that left it; null for one that was written over HTTP")
    created_at: datetime


@router.get("/v1/threads", response_model=Page[ThreadView])
async def list_threads(request: Request, caller: Reads, limit: Limit = 20, cursor: Cursor = None) -> Page[ThreadView]:
    """List threads, the youngest first. A thread is there once a job in it has succeeded."""
    parts = parts_of(request)
    records = ThreadRecords(parts.engine)
    found = await parts.in_thread(records.latest, caller, place=place_of(cursor), limit=limit + 1)
    return page_of(found, limit=limit, show=_view, place=lambda thread: Place(thread.created_at, thread.id))


@router.get("/v1/threads/{thread_id}", response_model=ThreadView)
async def get_thread(thread_id: ThreadId, request: Request, caller: Reads) -> ThreadView:
    """Show a thread."""
    return _view(await _found(parts_of(request), thread_id, caller))


@router.get("/v1/threads/{thread_id}/messages", response_model=Page[MessageView])
async def list_thread_messages(
    thread_id: ThreadId, request: Request, caller: Reads, limit: Limit = 20, cursor: Cursor = None
) -> Page[MessageView]:
    """List the messages of a thread in their order, the oldest first."""
    parts = parts_of(request)
    place = place_of(cursor)
    thread = await _found(parts, thread_id, caller)
    found = await parts.in_thread(
        ThreadMessages(Threads(parts.engine)).behind,
        thread.workspace,
        thread.id,
        position=-1 if place is None else place.number,
        limit=limit + 1,
    )
    return page_of(found, limit=limit, show=_message, place=lambda each: Place(each.created_at, str(each.position)))


@router.delete("/v1/threads/{thread_id}", status_code=204, response_class=Response)
async def delete_thread(thread_id: ThreadId, request: Request, caller: Runs) -> Response:
    """Delete a thread and its messages: no job sees them any more."""
    parts = parts_of(request)
    thread = await _found(parts, thread_id, caller)
    await parts.in_thread(Threads(parts.engine).delete, thread.workspace, thread.id)
    return Response(status_code=204)


async def _found(parts: Parts, thread_id: str, caller: Caller) -> Thread:
    thread = await parts.in_thread(ThreadRecords(parts.engine).thread, thread_id, caller)
    if thread is None:
        raise unknown_thread(thread_id)
    return thread


def _view(thread: Thread) -> ThreadView:
    return ThreadView(id=thread.id, metadata=thread.thread_metadata, created_at=thread.created_at)


def _message(row: ThreadMessage) -> MessageView:
    return MessageView(
        position=row.position,
        message=row.message,
        metadata=row.message_metadata,
        job_id=row.job_id or None,
        created_at=row.created_at,
    )
