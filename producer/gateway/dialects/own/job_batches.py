"""Our own API: batches of jobs, as JSON or as a file of rows."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import ValidationError

from producer.gateway.access import Caller, Reads, Runs
from producer.gateway.dialects.own.batch_events import batch_events
from producer.gateway.dialects.own.batch_records import BatchRecords, at_ms
from producer.gateway.dialects.own.batch_requests import BatchTerms, JobBatchRequest, UploadTerms
from producer.gateway.dialects.own.batch_results import Format, results_download
from producer.gateway.dialects.own.batch_submission import BatchSubmission
from producer.gateway.dialects.own.batch_view import BatchView, view_of_batch
from producer.gateway.dialects.own.continued_threads import refuse_threads_of_others
from producer.gateway.dialects.own.job_requests import invalid
from producer.gateway.dialects.own.jobs import ID_PATTERN
from producer.gateway.dialects.own.pages import Cursor, Limit, Page, Place, page_of, place_of
from producer.gateway.dialects.own.problem_details import PROBLEMS
from producer.gateway.dialects.own.uploads import SUFFIXES, bounded_body, media_type_of, spooled
from producer.gateway.http import sse
from producer.gateway.http.strict_json import StrictJsonRoute
from producer.gateway.idempotency import IdempotencyKey, identified, made_before, remember
from producer.gateway.parts import parts_of
from producer.gateway.problem import Kind, Problem
from producer.retry import retry
from schemas.batch import BatchStatus
from schemas.errors import InputError, ProducerError

router = APIRouter(route_class=StrictJsonRoute, tags=["Job batches"], responses=PROBLEMS)

BatchId = Annotated[str, Path(pattern=ID_PATTERN)]

_JSON = "application/json"
_ENQUEUED: dict[int | str, dict[str, Any]] = {
    200: {"model": BatchView, "description": "A request with this key made it before, and it has ended"},
    202: {"model": BatchView, "description": "All jobs are enqueued"},
}
_FILE = {"type": "string", "format": "binary"}
_FORM = {
    "type": "object",
    "properties": {"file": _FILE},
    "required": ["file"],
    "additionalProperties": {"type": "string"},
}


def _request_body() -> dict[str, Any]:
    # The body is read here, not by FastAPI, which would hold a file in memory.
    schema = JobBatchRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    # JobRequest, and what it is made of, is declared with POST /v1/jobs.
    schema.pop("$defs")
    contents = {_JSON: {"schema": schema}, "multipart/form-data": {"schema": _FORM}}
    contents |= {media_type: {"schema": _FILE} for media_type in SUFFIXES}
    return {"requestBody": {"required": True, "content": contents}}


@router.post(
    "/v1/job-batches", status_code=202, response_model=BatchView, responses=_ENQUEUED, openapi_extra=_request_body()
)
async def create_job_batch(
    request: Request,
    response: Response,
    caller: Runs,
    terms: Annotated[UploadTerms, Query()],
    key: IdempotencyKey = None,
) -> BatchView:
    """Enqueue jobs as one batch: `application/json`, or a CSV or JSONL file, as the body or a form's part `file`.

    The parameters are for files. All rows are checked before the first is enqueued; bad ones are named by line
    and column. A batch that was interrupted without an Idempotency-Key is called off; with one, send it again.
    """
    parts = parts_of(request)
    submission = BatchSubmission(parts, caller)
    if media_type_of(request) == _JSON:
        if terms.model_fields_set:
            raise Problem(Kind.BAD_REQUEST, "a JSON body says all itself: send no parameters", code="invalid_request")
        raw = await bounded_body(request, max_bytes=parts.settings.http_max_body_bytes)
        body = await parts.in_thread(_parsed, raw)
        known = await identified(parts, key, workspace=caller.workspace, operation="job-batches", body=body)
        made = await parts.submitted(submission.jobs, body, known)
    else:
        async with spooled(request) as upload:
            asked = _with_fields(terms, upload.fields)
            told = f"{asked.model_dump_json(exclude_unset=True)} {upload.sha256}"
            known = await identified(parts, key, workspace=caller.workspace, operation="job-batches", body=told)
            made = await parts.submitted(submission.rows, upload, asked, known)
    return _accepted(made, response)


@router.get("/v1/job-batches", response_model=Page[BatchView])
async def list_job_batches(
    request: Request, caller: Reads, limit: Limit = 20, cursor: Cursor = None
) -> Page[BatchView]:
    """List batches, running and ended, latest first."""
    parts = parts_of(request)
    found = await parts.in_thread(BatchRecords(parts).latest, caller, place=place_of(cursor), limit=limit + 1)
    return page_of(
        found, limit=limit, show=view_of_batch, place=lambda status: Place(at_ms(status.created_ms), status.batch_id)
    )


@router.get("/v1/job-batches/{batch_id}", response_model=BatchView)
async def get_job_batch(batch_id: BatchId, request: Request, caller: Reads) -> BatchView:
    """Show a batch and its counts at this moment."""
    parts = parts_of(request)
    return view_of_batch(await parts.in_thread(BatchRecords(parts).find, batch_id, caller))


@router.get(
    "/v1/job-batches/{batch_id}/results",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "The results that are there",
            "content": {
                "text/csv": {"schema": {"type": "string"}},
                "application/x-ndjson": {"schema": {"type": "string"}},
            },
        }
    },
)
async def get_job_batch_results(
    batch_id: BatchId,
    request: Request,
    caller: Reads,
    format: Format = "jsonl",  # noqa: A002 - the parameter's name
) -> StreamingResponse:
    """Download the results of a batch in the order of its rows, as far as they are there.

    A row that was retried has the result of its last run.
    """
    parts = parts_of(request)
    await parts.in_thread(BatchRecords(parts).find, batch_id, caller)
    return await results_download(parts, batch_id, caller, format=format)


@router.post("/v1/job-batches/{batch_id}/cancel", response_model=BatchView)
async def cancel_job_batch(batch_id: BatchId, request: Request, caller: Runs) -> BatchView:
    """Call a batch off: its jobs that wait end now, those that run at their next step. One that has ended stays so."""
    parts = parts_of(request)
    records = BatchRecords(parts)

    def cancel() -> BatchStatus:
        if not records.find(batch_id, caller).ended:
            try:
                parts.producer.batch(batch_id).cancel()
            except ProducerError:
                # Its last job may have ended meanwhile: then there is nothing to call off.
                status = records.find(batch_id, caller)
                if status.total is None or status.finished < status.total:
                    raise
        return records.find(batch_id, caller)

    return view_of_batch(await parts.in_thread(cancel))


@router.post("/v1/job-batches/{batch_id}/retry", status_code=202, response_model=BatchView, responses=_ENQUEUED)
async def retry_job_batch(
    batch_id: BatchId,
    request: Request,
    response: Response,
    caller: Runs,
    body: BatchTerms | None = None,
    key: IdempotencyKey = None,
) -> BatchView:
    """Run the rows that did not succeed anew, as another batch, whose `retry_of` is this one.

    The webhook is the batch's unless one is given. The results of this batch then have each row's last one.
    """
    parts = parts_of(request)
    records = BatchRecords(parts)
    terms = body or BatchTerms()
    told = f"{batch_id} {terms.model_dump_json(exclude_unset=True)}"
    known = await identified(parts, key, workspace=caller.workspace, operation="job-batches/retry", body=told)
    status = await parts.in_thread(records.find, batch_id, caller)
    made_id = await made_before(parts, known)
    if made_id is None:
        made_id = await parts.submitted(_retried, request, status, terms, caller)
        await remember(parts, known, made_id)
    return _accepted(await parts.in_thread(records.find, made_id, caller), response)


@router.get(
    "/v1/job-batches/{batch_id}/events",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {}}}},
)
async def stream_job_batch_events(batch_id: BatchId, request: Request, caller: Reads) -> StreamingResponse:
    """Tell what becomes of a batch as server-sent events: `counts` when they change, and `end`."""
    return await sse.event_stream(batch_events(parts_of(request), batch_id, caller))


def _parsed(raw: bytes) -> JobBatchRequest:
    try:
        return JobBatchRequest.model_validate_json(raw)
    except ValidationError as exc:
        raise invalid(exc) from exc


def _with_fields(terms: UploadTerms, fields: dict[str, str]) -> UploadTerms:
    """Return the parameters of the URL with those that came as fields of the form."""
    if not fields:
        return terms
    try:
        return UploadTerms.model_validate({**terms.model_dump(exclude_unset=True), **fields})
    except ValidationError as exc:
        raise invalid(exc) from exc


def _retried(request: Request, status: BatchStatus, terms: BatchTerms, caller: Caller) -> str:
    parts = parts_of(request)
    if not status.ended:
        raise _not_retried(f"batch '{status.batch_id}' has not ended; cancel it first, or wait")
    if caller.assistants is not None:
        refuse_threads_of_others(parts, caller, BatchRecords(parts).threads(status))
    try:
        retried = retry(parts.producer, parts.records, status.batch_id, within=caller.made_with, **terms.terms())
    except InputError as exc:
        raise _not_retried(exc.what) from exc
    if retried.batch is None:
        raise _not_retried(f"nothing of batch '{retried.root}' can be run anew")
    return retried.batch.id


def _not_retried(what: str) -> Problem:
    return Problem(Kind.CONFLICT, what, code="not_retryable")


def _accepted(status: BatchStatus, response: Response) -> BatchView:
    response.headers["location"] = f"/v1/job-batches/{status.batch_id}"
    response.status_code = 200 if status.ended else 202
    return view_of_batch(status)
