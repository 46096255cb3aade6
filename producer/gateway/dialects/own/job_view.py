"""A job as our own API shows it, whether it waits, runs or has ended."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, Field
from redis.asyncio import Redis

from producer.answers import text
from producer.gateway.access import Caller
from producer.gateway.dialects.own.job_records import JobRecords
from producer.gateway.parts import Parts
from producer.gateway.problem import Kind, Problem
from schemas import names
from schemas.chat import Message, ToolCall
from schemas.job import JobRecord
from schemas.money import amount
from schemas.outcome import Status
from schemas.result import JobResult
from schemas.tables import Job

Open = Literal["waiting", "running"]
# What of a job's states in Redis is no waiting.
_RUNNING = "running"


class JobError(BaseModel):
    """Why a job did not succeed."""

    code: str
    message: str


class JobView(BaseModel):
    """A job; what comes after `custom_id` is known once it has ended.

    `output` is the validated value, or the reply's text where no output spec was given. `tool_calls` wait for the
    answers of the caller, in the next job of the thread. Money is a decimal number as text, in the currency of
    the configured prices. `turn` are the messages of a job with `tell: turn`, for a day after its end.
    """

    id: str
    status: Status | Open
    assistant: str
    batch_id: str | None = None
    row: int | None = None
    custom_id: str | None = None
    thread_id: str | None = None
    version: int | None = None
    model: str | None = None
    output: Any = None
    tool_calls: list[ToolCall] = []
    choices: list[str] = []
    retrieved: list[dict[str, Any]] = []
    turn: list[Message] = []
    finish_reason: str | None = None
    error: JobError | None = None
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: str = "0.00"
    attempts: int = 0
    enqueued_at: datetime | None = Field(default=None, description="null in the first day after the job's end")
    finished_at: datetime | None = None

    @property
    def ended(self) -> bool:
        """Return whether nothing of it is left to do."""
        return self.finished_at is not None


def view_of_result(result: JobResult) -> JobView:
    """Return a job that ended."""
    shown = JobView.model_fields.keys() & JobResult.model_fields.keys() - {"error"}
    values = {name: getattr(result, name) for name in shown}
    error = None
    if not result.succeeded:
        error = JobError(code=result.error_code or result.status.value, message=result.error or "")
    return JobView(**values, id=result.job_id, cost=amount(result.cost_nano), error=error)


def view_of_row(row: Job) -> JobView:
    """Return a job that ended, out of SQL."""
    return view_of_result(row.result()).model_copy(update={"enqueued_at": row.enqueued_at})


async def find_job(parts: Parts, job_id: str, caller: Caller) -> JobView:
    """Return the job as it is now; Problem 404 if the caller knows none of this id."""
    found = await queued_job(parts.redis, job_id)
    if found is not None:
        if not caller.may_use(found.assistant):
            raise unknown_job(job_id)
        return found
    row = await parts.in_thread(JobRecords(parts.engine).job, job_id, caller=caller)
    if row is None:
        raise unknown_job(job_id)
    return view_of_row(row)


async def queued_job(connection: Redis, job_id: str) -> JobView | None:
    """Return the job as Redis knows it, whoever's it is; None if it does not (any more)."""
    async with connection.pipeline(transaction=True) as pipe:
        pipe.get(names.result(job_id))
        pipe.hmget(names.job(job_id), ["record", "state", "enqueued_ms", "attempts"])
        result, (record, state, enqueued_ms, attempts) = await pipe.execute()
    if result is not None:
        return view_of_result(JobResult.model_validate_json(result))
    if record is None:
        return None
    known = JobRecord.model_validate_json(record)
    return JobView(
        id=job_id,
        status="running" if text(state) == _RUNNING else "waiting",
        assistant=known.job.address,
        version=known.job.version,
        batch_id=known.batch_id,
        row=known.row,
        custom_id=known.job.custom_id,
        thread_id=known.job.thread_id,
        model=known.job.model,
        attempts=int(attempts or 0),
        enqueued_at=datetime.fromtimestamp(int(enqueued_ms) / 1000, UTC),
    )


def unknown_job(job_id: str) -> Problem:
    """Return the problem of a job that the caller does not know: of another workspace, or of none."""
    return Problem(Kind.NOT_FOUND, f"job '{job_id}' is not known", code="job_unknown")
