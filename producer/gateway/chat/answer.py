"""Runs the job of a chat completion and answers with it, whole or as a stream; a repeated request finds the first."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from producer.gateway.access import Caller
from producer.gateway.bodies import Dialect
from producer.gateway.chat.completion import Extra, chat_chunks, chat_completion, completion_id_of
from producer.gateway.failures import failure
from producer.gateway.http import sse
from producer.gateway.idempotency import ended_before, identified
from producer.gateway.parts import parts_of
from schemas.job import InvokeJob
from schemas.result import JobResult
from schemas.stream import StreamPart

REQUEST_ID_HEADER = "x-request-id"


@dataclass(frozen=True, slots=True)
class Begun:
    """A request that is to become a job; `earlier` is how that of an earlier one with the same key ended.

    It is `findable` if it has a key: a request that is sent again finds its job.
    """

    job_id: str
    earlier: JobResult | None
    findable: bool


@dataclass(frozen=True, slots=True)
class ChatCall:
    """A job, and how its caller wants to be answered.

    `model` is what chunks name, before it is known which one answered. `beside` is `chat_chunks`' `extra`,
    `within` as in JobRecord; the others are as in `chat_chunks`.
    """

    job: InvokeJob
    model: str
    dialect: Dialect = Dialect.OPENAI
    stream: bool = False
    include_usage: bool = False
    whole: bool = False
    callers_tools: frozenset[str] = frozenset()
    beside: Extra = field(default=lambda _: {})
    within: Sequence[str] | None = None


async def begun(request: Request, caller: Caller, key: str | None, *, operation: str, body: BaseModel | str) -> Begun:
    """Return the id of the job that the request becomes; with an `Idempotency-Key` it is that of its first try.

    Every answer has it as `x-request-id`, errors included.
    """
    parts = parts_of(request)
    told = await identified(parts, key, workspace=caller.workspace, operation=operation, body=body)
    job_id = told.job_id if told else f"job_{uuid.uuid4().hex}"
    request.state.request_id = job_id
    return Begun(job_id=job_id, earlier=await ended_before(parts, told), findable=told is not None)


async def answered(request: Request, call: ChatCall, run: Begun) -> Response:
    """Run the job, unless it has ended earlier, and return its answer; raises a Problem if it has none."""
    calls, earlier = parts_of(request).calls, run.earlier
    completion_id = completion_id_of(call.job.id or "")
    headers = {REQUEST_ID_HEADER: call.job.id or ""}
    if earlier is not None and not earlier.succeeded:
        raise failure(earlier)
    if not call.stream:
        result = earlier or await calls.answer(call.job, request, findable=run.findable, within=call.within)
        return JSONResponse(
            chat_completion(result, completion_id=completion_id, extra=call.beside(result)), headers=headers
        )
    coming = calls.stream(call.job, request, findable=run.findable, within=call.within)
    chunks = chat_chunks(
        coming if earlier is None else _ended(earlier),
        completion_id=completion_id,
        model=call.model,
        dialect=call.dialect,
        include_usage=call.include_usage,
        whole=call.whole,
        callers_tools=call.callers_tools,
        extra=call.beside,
    )
    return await sse.event_stream(chunks, headers=headers)


async def _ended(result: JobResult) -> AsyncGenerator[StreamPart | JobResult]:
    yield result
