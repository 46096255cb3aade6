"""Our own API: jobs, one at a time. Batches of them are in job_batches.py."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import ValidationError

from producer.gateway.access import Caller, Reads, Runs, refuse_unshared
from producer.gateway.dialects.own.continued_threads import refuse_threads_of_others
from producer.gateway.dialects.own.job_events import checked_event_id, job_events
from producer.gateway.dialects.own.job_records import JobRecords
from producer.gateway.dialects.own.job_requests import AssistantName, JobRequest, address_of
from producer.gateway.dialects.own.job_view import JobView, find_job, view_of_row
from producer.gateway.dialects.own.pages import Cursor, Limit, Page, Place, page_of, place_of
from producer.gateway.dialects.own.problem_details import PROBLEMS
from producer.gateway.dialects.own.waiting import WaitS, end_of
from producer.gateway.http import sse
from producer.gateway.http.strict_json import StrictJsonRoute
from producer.gateway.idempotency import IdempotencyKey, Identified, ended_before, identified
from producer.gateway.parts import Parts, parts_of
from producer.gateway.problem import Kind, Problem
from schemas.job import InvokeJob
from schemas.outcome import Status

router = APIRouter(route_class=StrictJsonRoute, tags=["Jobs"], responses=PROBLEMS)

ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:@-]{0,199}$"
JobId = Annotated[str, Path(pattern=ID_PATTERN)]
BatchFilter = Annotated[str | None, Query(pattern=ID_PATTERN)]

_ENQUEUED: dict[int | str, dict[str, Any]] = {
    200: {"model": JobView, "description": "The job has ended"},
    202: {"model": JobView, "description": "The job is enqueued"},
}


@router.post("/v1/jobs", status_code=202, response_model=JobView, responses=_ENQUEUED)
async def create_job(
    body: JobRequest,
    request: Request,
    response: Response,
    caller: Runs,
    wait_s: WaitS,
    key: IdempotencyKey = None,
) -> JobView:
    """Enqueue a job; the answer comes once it is on the queue's disk, or with the job's end if that is waited for."""
    parts = parts_of(request)
    job = body.to_job(caller)
    await _refuse_threads_of_others(parts, job, caller)
    known = await identified(parts, key, workspace=caller.workspace, operation="jobs", body=body)
    return await _enqueued(parts, job, known, caller, response, wait_s=wait_s)


@router.get("/v1/jobs", response_model=Page[JobView])
async def list_jobs(
    request: Request,
    caller: Reads,
    status: Status | None = None,
    assistant: Annotated[AssistantName | None, Query()] = None,
    batch: BatchFilter = None,
    limit: Limit = 20,
    cursor: Cursor = None,
) -> Page[JobView]:
    """List the jobs that ended, latest first."""
    parts = parts_of(request)
    found = await parts.in_thread(
        JobRecords(parts.engine).jobs,
        caller=caller,
        status=status,
        assistant=None if assistant is None else address_of(assistant, caller),
        batch_id=batch,
        place=place_of(cursor),
        limit=limit + 1,
    )
    return page_of(found, limit=limit, show=view_of_row, place=lambda row: Place(row.finished_at, row.id))


@router.get("/v1/jobs/{job_id}", response_model=JobView)
async def get_job(job_id: JobId, request: Request, caller: Reads) -> JobView:
    """Show a job: how it is now, or how it ended."""
    return await find_job(parts_of(request), job_id, caller)


@router.post("/v1/jobs/{job_id}/cancel", response_model=JobView)
async def cancel_job(job_id: JobId, request: Request, caller: Runs) -> JobView:
    """Call a job off: one that waits ends at once, one that runs at its next step. One that has ended stays so."""
    parts = parts_of(request)
    job = await find_job(parts, job_id, caller)
    if not job.ended:
        await parts.in_thread(parts.producer.cancel, job_id)
        job = await find_job(parts, job_id, caller)
    return job


@router.post("/v1/jobs/{job_id}/retry", status_code=202, response_model=JobView, responses=_ENQUEUED)
async def retry_job(
    job_id: JobId,
    request: Request,
    response: Response,
    caller: Runs,
    wait_s: WaitS,
    key: IdempotencyKey = None,
) -> JobView:
    """Run a job that did not succeed anew, as another job."""
    parts = parts_of(request)
    job = await _to_retry(parts, job_id, caller)
    refuse_unshared(job.address, caller)
    await _refuse_threads_of_others(parts, job, caller)
    known = await identified(parts, key, workspace=caller.workspace, operation="jobs/retry", body=job_id)
    return await _enqueued(parts, job, known, caller, response, wait_s=wait_s)


@router.get(
    "/v1/jobs/{job_id}/events",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {}}}},
)
async def stream_job_events(
    job_id: JobId, request: Request, caller: Reads, last_event_id: Annotated[str | None, Header()] = None
) -> StreamingResponse:
    """Tell what becomes of a job as server-sent events: `state`, `part` (of a job with `tell: stream`) and `end`."""
    last = checked_event_id(last_event_id)
    return await sse.event_stream(job_events(parts_of(request), job_id, caller, last=last))


async def _enqueued(
    parts: Parts, job: InvokeJob, known: Identified | None, caller: Caller, response: Response, *, wait_s: float | None
) -> JobView:
    """Enqueue the job unless it was before, and return it as it is after the wait."""
    before = await ended_before(parts, known)
    if before is not None:
        job_id = before.job_id
    else:
        if known is not None:
            job = job.model_copy(update={"id": known.job_id})
        handle = await parts.enqueued(parts.producer.enqueue, job, within=caller.made_with)
        job_id = handle.id
    found = await end_of(parts, job_id, caller, wait_s=wait_s or 0)
    response.headers["location"] = f"/v1/jobs/{job_id}"
    if wait_s is not None:
        response.headers["preference-applied"] = f"wait={wait_s:g}"
    response.status_code = 200 if found.ended else 202
    return found


async def _to_retry(parts: Parts, job_id: str, caller: Caller) -> InvokeJob:
    """Return what the job asked for; Problem 409 if it cannot be run anew."""
    row = await parts.in_thread(JobRecords(parts.engine).job, job_id, caller=caller)
    if row is None:
        await find_job(parts, job_id, caller)
        raise _not_retried(f"job '{job_id}' has not ended; cancel it first, or wait")
    if row.status == Status.SUCCEEDED:
        raise _not_retried(f"job '{job_id}' has succeeded; enqueue a new job to run it again")
    try:
        # Its id would be that of the job which has ended.
        return InvokeJob.model_validate({**(row.request or {}), "id": None})
    except ValidationError as exc:
        what = f"job '{job_id}' keeps no request to run anew: it was rejected, or is not recorded"
        raise _not_retried(what) from exc


async def _refuse_threads_of_others(parts: Parts, job: InvokeJob, caller: Caller) -> None:
    await parts.in_thread(refuse_threads_of_others, parts, caller, [job.thread_id])


def _not_retried(what: str) -> Problem:
    return Problem(Kind.CONFLICT, what, code="not_retryable")
