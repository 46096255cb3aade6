"""OpenAI's batches: a file of chat completions, answered within a day by files of answers and of errors."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, BackgroundTasks, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from producer.gateway.access import Caller, caller
from producer.gateway.dialects.openai.batching.keeper import tell_of_batch
from producer.gateway.dialects.openai.batching.store import BatchStatus, NewBatch, OpenAIBatches
from producer.gateway.dialects.openai.errors import OPENAI_ERRORS
from producer.gateway.dialects.openai.files import INPUT_PURPOSE, file_for_batches
from producer.gateway.http.strict_json import StrictJsonRoute
from producer.gateway.keys import Scope
from producer.gateway.parts import Parts, parts_of
from producer.gateway.problem import Kind, Problem
from schemas.outcome import Status
from schemas.tables import OpenAIBatch

router = APIRouter(route_class=StrictJsonRoute, tags=["OpenAI"], responses=OPENAI_ERRORS)

_COUNTED_AS_FAILED = (Status.FAILED, Status.INVALID_OUTPUT, Status.OVER_BUDGET)
MetadataKey = Annotated[str, Field(min_length=1, max_length=64)]
MetadataText = Annotated[str, Field(max_length=512)]
Metadata = Annotated[dict[MetadataKey, MetadataText], Field(max_length=16)]


class OutputExpiresAfter(BaseModel):
    """How long the files of answers are kept, from when they are there."""

    anchor: Literal["created_at"]
    seconds: int = Field(ge=3600, le=30 * 24 * 3600)


class BatchRequest(BaseModel):
    """What is asked for."""

    # OpenAI ignores what it does not know.
    model_config = ConfigDict(frozen=True, extra="ignore")

    input_file_id: str = Field(min_length=1, max_length=200)
    endpoint: Literal["/v1/chat/completions"]
    completion_window: Literal["24h"]
    metadata: Metadata | None = None
    output_expires_after: OutputExpiresAfter | None = None


class BatchFault(BaseModel):
    """What is wrong with the input file; `line` counts from 1."""

    code: str
    message: str
    param: str | None
    line: int | None


class BatchFaults(BaseModel):
    """The first of them."""

    object: Literal["list"] = "list"
    data: list[BatchFault]


class RequestCounts(BaseModel):
    """Rows by what became of them; those that were cancelled or expired are in `total` alone."""

    total: int
    completed: int
    failed: int


class InputTokensDetails(BaseModel):
    """Not told apart by every provider: 0."""

    cached_tokens: int = 0


class OutputTokensDetails(BaseModel):
    """Not told apart by every provider: 0."""

    reasoning_tokens: int = 0


class BatchUsage(BaseModel):
    """The providers' counts of tokens, over all rows."""

    input_tokens: int
    input_tokens_details: InputTokensDetails = InputTokensDetails()
    output_tokens: int
    output_tokens_details: OutputTokensDetails = OutputTokensDetails()
    total_tokens: int


class BatchObject(BaseModel):
    """OpenAI's `batch`; times are seconds since the epoch."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: None = None
    errors: BatchFaults | None
    input_file_id: str
    completion_window: str
    status: BatchStatus
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    usage: BatchUsage | None
    metadata: dict[str, str] | None


class BatchList(BaseModel):
    """A page of batches, newest first."""

    object: Literal["list"] = "list"
    data: list[BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


@router.post("/v1/batches")
async def create_batch(
    body: BatchRequest,
    request: Request,
    caller: Annotated[Caller, Depends(caller(Scope.RUN))],
    background: BackgroundTasks,
) -> BatchObject:
    """Make a batch of the requests in a file; it is checked and run in the background."""
    parts = parts_of(request)
    file = await file_for_batches(parts, caller, body.input_file_id, param="input_file_id")
    if file.purpose != INPUT_PURPOSE:
        raise Problem(
            Kind.BAD_REQUEST,
            f"input_file_id: file {file.id} has the purpose '{file.purpose}'; upload one for '{INPUT_PURPOSE}'",
            code="invalid_file_purpose",
            param="input_file_id",
        )
    new = NewBatch(
        workspace=caller.workspace,
        assistants=caller.assistants,
        input_file_id=file.id,
        endpoint=body.endpoint,
        completion_window=body.completion_window,
        metadata=body.metadata,
        output_expires_after_s=body.output_expires_after.seconds if body.output_expires_after else None,
    )
    row = await parts.in_thread(_store(parts).create, new)
    # After the answer, which does not need Redis.
    background.add_task(tell_of_batch, parts.redis, row.id)
    return await parts.in_thread(_told, parts, row)


@router.get("/v1/batches")
async def list_batches(
    request: Request,
    caller: Annotated[Caller, Depends(caller(Scope.READ))],
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> BatchList:
    """List the batches that the key sees."""
    parts = parts_of(request)
    cursor = None
    if after is not None:
        cursor = await parts.in_thread(_store(parts).get, caller, after)
        if cursor is None:
            raise Problem(Kind.BAD_REQUEST, f"after: there is no batch '{after}'", param="after")
    rows, has_more = await parts.in_thread(_store(parts).page, caller, limit=limit, after=cursor)
    data = await parts.in_thread(lambda: [_told(parts, row) for row in rows])
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return BatchList(data=data, first_id=first, last_id=last, has_more=has_more)


@router.get("/v1/batches/{batch_id}")
async def retrieve_batch(
    batch_id: str, request: Request, caller: Annotated[Caller, Depends(caller(Scope.READ))]
) -> BatchObject:
    """Return where a batch is."""
    parts = parts_of(request)
    return await parts.in_thread(lambda: _told(parts, _found(parts, caller, batch_id)))


@router.post("/v1/batches/{batch_id}/cancel")
async def cancel_batch(
    batch_id: str, request: Request, caller: Annotated[Caller, Depends(caller(Scope.RUN))]
) -> BatchObject:
    """Cancel a batch: what runs ends at its next step, what waits does not run; what was answered is in its files."""
    parts = parts_of(request)
    return await parts.in_thread(_cancel, parts, caller, batch_id)


def _cancel(parts: Parts, caller: Caller, batch_id: str) -> BatchObject:
    _found(parts, caller, batch_id)
    # First the row, so that whoever is taking its rows in finds it called off.
    _store(parts).call_off(batch_id)
    row = _found(parts, caller, batch_id)
    if row.status not in (BatchStatus.CANCELLING, BatchStatus.CANCELLED):
        raise Problem(
            Kind.CONFLICT,
            f"Cannot cancel a batch with status '{row.status}'.",
            code="invalid_batch_status",
        )
    handle = parts.producer.batch(batch_id)
    status = handle.status()
    if status is not None and not (status.ended or status.cancelling):
        handle.cancel()
    return _told(parts, row)


def _found(parts: Parts, caller: Caller, batch_id: str) -> OpenAIBatch:
    row = _store(parts).get(caller, batch_id)
    if row is None:
        raise Problem(Kind.NOT_FOUND, f"No batch found with id '{batch_id}'.", code="batch_not_found", param="batch_id")
    return row


def _store(parts: Parts) -> OpenAIBatches:
    return OpenAIBatches(parts.engine)


def _told(parts: Parts, row: OpenAIBatch) -> BatchObject:
    """Return the batch as OpenAI tells it; blocks."""
    ended_as = {row.status: _seconds(row.ended_at)}
    counts, usage = _counts(parts, row)
    return BatchObject(
        id=row.id,
        endpoint=row.endpoint,
        errors=None if row.errors is None else BatchFaults(data=row.errors),
        input_file_id=row.input_file_id,
        completion_window=row.completion_window,
        status=BatchStatus(row.status),
        output_file_id=row.output_file_id,
        error_file_id=row.error_file_id,
        created_at=int(row.created_at.timestamp()),
        in_progress_at=_seconds(row.in_progress_at),
        expires_at=int(row.expires_at.timestamp()),
        finalizing_at=_seconds(row.finalizing_at),
        completed_at=ended_as.get(BatchStatus.COMPLETED),
        failed_at=ended_as.get(BatchStatus.FAILED),
        expired_at=ended_as.get(BatchStatus.EXPIRED),
        cancelling_at=_seconds(row.cancelling_at),
        cancelled_at=ended_as.get(BatchStatus.CANCELLED),
        request_counts=counts,
        usage=usage,
        metadata=row.batch_metadata,
    )


def _counts(parts: Parts, row: OpenAIBatch) -> tuple[RequestCounts, BatchUsage | None]:
    if row.ended_at is not None:
        counts = RequestCounts(total=row.total or 0, completed=row.succeeded, failed=row.failed)
        return counts, _usage(row.prompt_tokens, row.completion_tokens)
    if row.in_progress_at is None:
        return RequestCounts(total=0, completed=0, failed=0), None
    status = parts.producer.batch(row.id).status() or parts.records.batch(row.id)
    of: dict[Status, int] = {} if status is None else status.counts
    failed = sum(of.get(each, 0) for each in _COUNTED_AS_FAILED)
    return RequestCounts(total=row.total or 0, completed=of.get(Status.SUCCEEDED, 0), failed=failed), None


def _usage(prompt_tokens: int, completion_tokens: int) -> BatchUsage:
    total = prompt_tokens + completion_tokens
    return BatchUsage(input_tokens=prompt_tokens, output_tokens=completion_tokens, total_tokens=total)


def _seconds(at: datetime | None) -> int | None:
    return None if at is None else int(at.timestamp())
