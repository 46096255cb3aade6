"""Langtail's threads: list, create, read, change and delete them and their messages (CONTRACT.md 1.7, rows 35-41).

A thread is of its workspace, and of no project: its `projectId` is the workspace's name.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any, Concatenate, Literal, ParamSpec, TypeVar

from fastapi import APIRouter, Body, Query, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from producer.gateway.access import Caller, Reads, Runs
from producer.gateway.dialects.langtail.config import iso
from producer.gateway.dialects.langtail.invoke import errors
from producer.gateway.dialects.langtail.request import ChatMessage, Metadata, messages_of, refusal
from producer.gateway.http.strict_json import StrictJsonRoute
from producer.gateway.parts import parts_of
from producer.gateway.thread_messages import ThreadMessages, message_id
from producer.gateway.threads import Threads
from schemas.chat import Message
from schemas.tables import Thread, ThreadMessage, storable

Given = ParamSpec("Given")
Found = TypeVar("Found")

MOST_AT_ONCE = 100
PATH = "/v2/threads"

router = APIRouter(route_class=StrictJsonRoute, tags=["Langtail"])
_Limit = Annotated[int, Query(ge=1, le=MOST_AT_ONCE)]
_After = Annotated[str | None, Query(description="The last_id of the page before.")]


class ThreadShown(BaseModel):
    """A thread."""

    id: str
    object: Literal["thread"] = "thread"
    createdAt: str  # noqa: N815 - the name on the wire
    deletedAt: None = None  # noqa: N815 - ditto
    projectId: str  # noqa: N815 - ditto
    createLog: Any  # noqa: N815 - ditto
    metadata: dict[str, Any] | None


class MessageShown(BaseModel):
    """A message; `requestLogId` is the job that left it, None for one that was written over HTTP."""

    id: str
    object: Literal["message"] = "message"
    threadId: str  # noqa: N815 - the name on the wire
    createdAt: str  # noqa: N815 - ditto
    content: dict[str, Any]
    requestLogId: str | None  # noqa: N815 - ditto
    metadata: dict[str, Any] | None


class _List(BaseModel):
    object: Literal["list"] = "list"
    first_id: str | None
    last_id: str | None
    has_more: bool


class ThreadList(_List):
    """Some of the threads."""

    data: list[ThreadShown]


class MessageList(_List):
    """Some of a thread's messages."""

    data: list[MessageShown]


class Deleted(BaseModel):
    """What was deleted."""

    id: str
    object: Literal["thread", "message"]
    deleted: Literal[True] = True


class _Given(BaseModel):
    model_config = ConfigDict(extra="ignore")


class NewThread(_Given):
    """A thread to begin; `createLog` is kept as it is, and means nothing here."""

    metadata: Metadata | None = None
    createLog: dict[str, Any] | None = None  # noqa: N815 - the name on the wire

    @field_validator("createLog")
    @classmethod
    def _can_be_kept(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        try:
            json.dumps(value, allow_nan=False)
        except (ValueError, RecursionError) as exc:
            raise ValueError(f"cannot be written as JSON: {exc}") from exc
        kept: dict[str, Any] | None = storable(value)
        return kept


class NewMetadata(_Given):
    """Metadata in the place of what there was."""

    metadata: Metadata | None = Field()


class NewMessage(ChatMessage):
    """A message to add, in any form that an invocation takes."""

    metadata: Metadata | None = None


@router.get(PATH, response_model=ThreadList, responses=errors())
async def list_threads(
    request: Request, caller: Reads, limit: _Limit = MOST_AT_ONCE, after: _After = None
) -> ThreadList:
    """List the threads that the key sees, youngest first."""
    page = await _threads(request, caller, Threads.page, limit=limit, after=after)
    data = [_thread(row) for row in page.rows]
    first_id, last_id = _ends(data)
    return ThreadList(data=data, has_more=page.has_more, first_id=first_id, last_id=last_id)


@router.post(PATH, response_model=ThreadShown, responses=errors())
async def create_thread(
    request: Request, caller: Runs, body: Annotated[NewThread | None, Body()] = None
) -> ThreadShown:
    """Begin a thread; one begins by itself too, with the first job that names it."""
    new = body or NewThread()
    return _thread(
        await _threads(request, caller, Threads.create, metadata=_kept(new.metadata), create_log=new.createLog)
    )


@router.get(PATH + "/{thread_id}", response_model=ThreadShown, responses=errors(404))
async def read_thread(thread_id: str, request: Request, caller: Reads) -> ThreadShown:
    """Read a thread."""
    return _thread(await _threads(request, caller, Threads.thread, thread_id))


@router.post(PATH + "/{thread_id}", response_model=ThreadShown, responses=errors(404))
async def update_thread(thread_id: str, body: NewMetadata, request: Request, caller: Runs) -> ThreadShown:
    """Replace a thread's metadata."""
    row = await _threads(request, caller, Threads.set_metadata, thread_id, _kept(body.metadata))
    return _thread(row)


@router.delete(PATH + "/{thread_id}", response_model=Deleted, responses=errors(404))
async def delete_thread(thread_id: str, request: Request, caller: Runs) -> Deleted:
    """Delete a thread with its messages."""
    await _threads(request, caller, Threads.delete, thread_id)
    return Deleted(id=thread_id, object="thread")


@router.get(PATH + "/{thread_id}/messages", response_model=MessageList, responses=errors(404))
async def list_messages(
    thread_id: str,
    request: Request,
    caller: Reads,
    limit: _Limit = MOST_AT_ONCE,
    after: _After = None,
    order: Literal["asc", "desc"] = "asc",
) -> MessageList:
    """List a thread's messages."""
    page = await _messages(
        request,
        caller,
        ThreadMessages.page,
        thread_id,
        limit=limit,
        after=after,
        newest_first=order == "desc",
    )
    data = [_message(row) for row in page.rows]
    first_id, last_id = _ends(data)
    return MessageList(data=data, has_more=page.has_more, first_id=first_id, last_id=last_id)


@router.post(PATH + "/{thread_id}/messages", response_model=MessageShown, responses=errors(404, 409))
async def create_message(thread_id: str, body: NewMessage, request: Request, caller: Runs) -> MessageShown:
    """Add a message to a thread, behind all others."""
    try:
        message = Message.model_validate(messages_of([body], where="messages")[0])
    except ValidationError as error:
        raise refusal(error) from error
    row = await _messages(request, caller, ThreadMessages.append, thread_id, message, metadata=_kept(body.metadata))
    return _message(row)


@router.get(PATH + "/{thread_id}/messages/{message_id}", response_model=MessageShown, responses=errors(404))
async def read_message(thread_id: str, message_id: str, request: Request, caller: Reads) -> MessageShown:
    """Read a message."""
    return _message(await _messages(request, caller, ThreadMessages.message, thread_id, message_id))


@router.post(PATH + "/{thread_id}/messages/{message_id}", response_model=MessageShown, responses=errors(404))
async def update_message(
    thread_id: str, message_id: str, body: NewMetadata, request: Request, caller: Runs
) -> MessageShown:
    """Replace a message's metadata; what it says stays."""
    row = await _messages(request, caller, ThreadMessages.set_metadata, thread_id, message_id, _kept(body.metadata))
    return _message(row)


@router.delete(PATH + "/{thread_id}/messages/{message_id}", response_model=Deleted, responses=errors(404, 409))
async def delete_message(thread_id: str, message_id: str, request: Request, caller: Runs) -> Deleted:
    """Delete a message; one that calls tools goes with their answers."""
    await _messages(request, caller, ThreadMessages.delete, thread_id, message_id)
    return Deleted(id=message_id, object="message")


async def _threads(
    request: Request,
    caller: Caller,
    method: Callable[Concatenate[Threads, str, Given], Found],
    *args: Given.args,
    **kwargs: Given.kwargs,
) -> Found:
    parts = parts_of(request)
    return await parts.in_thread(method, Threads(parts.engine, caller.assistants), caller.workspace, *args, **kwargs)


async def _messages(
    request: Request,
    caller: Caller,
    method: Callable[Concatenate[ThreadMessages, str, Given], Found],
    *args: Given.args,
    **kwargs: Given.kwargs,
) -> Found:
    parts = parts_of(request)
    messages = ThreadMessages(Threads(parts.engine, caller.assistants), has_jobs=parts.producer.has_jobs)
    return await parts.in_thread(method, messages, caller.workspace, *args, **kwargs)


def _thread(row: Thread) -> ThreadShown:
    return ThreadShown(
        id=row.id,
        createdAt=iso(row.created_at),
        projectId=row.workspace,
        createLog=row.create_log,
        metadata=row.thread_metadata,
    )


def _message(row: ThreadMessage) -> MessageShown:
    return MessageShown(
        id=message_id(row),
        threadId=row.thread_id,
        createdAt=iso(row.created_at),
        content=Message.model_validate(row.message).to_openai(),
        requestLogId=row.job_id or None,
        metadata=row.message_metadata,
    )


def _ends(data: list[ThreadShown] | list[MessageShown]) -> tuple[str | None, str | None]:
    return (data[0].id, data[-1].id) if data else (None, None)


def _kept(metadata: Metadata | None) -> Any:
    return storable(metadata)
