"""Settle: what one job leaves behind, gathered for one SQL transaction. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from schemas.chat import Usage
from schemas.outcome import Code, Failed, Final, InvalidOutput, OverBudget, Status, Succeeded, status_of
from schemas.result import JobResult
from worker.flow.moves import replies, turn
from worker.flow.prepare import Prepared
from worker.queue.queue import Claimed
from worker.queue.steps import AnyStep
from worker.store.base import Settlement


def result_of(
    claimed: Claimed,
    outcome: Final,
    *,
    prepared: Prepared | None,
    steps: tuple[AnyStep, ...],
    now: datetime,
    tried: bool = True,
) -> JobResult:
    """Return how the job ended; `prepared` is None for a job that could not even be prepared, or crashed.

    `tried` says whether this run was an attempt, which counts.
    """
    record, bought = claimed.record, replies(steps)
    usage = sum((reply.usage for reply in bought), Usage())
    last = bought[-1] if bought else None
    return JobResult(
        job_id=record.id,
        batch_id=record.batch_id,
        row=record.row,
        custom_id=record.job.custom_id,
        status=status_of(outcome),
        assistant=record.job.address,
        version=prepared.assistant.version if prepared else record.job.version,
        thread_id=_thread_id(claimed, outcome),
        model=last.model if last else (prepared.model if prepared else None),
        finish_reason=last.finish_reason if last else None,
        requests=len(bought),
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cost_nano=sum(reply.cost_nano for reply in bought),
        attempts=claimed.attempts + tried,
        choices=(last.content, *last.alternatives) if last and last.alternatives else (),
        retrieved=last.retrieved if last else (),
        turn=turn(record.job.messages, steps) if record.job.tell != "end" and isinstance(outcome, Succeeded) else (),
        finished_at=now,
        **_end(outcome),
    )


def settlement_of(claimed: Claimed, result: JobResult, *, steps: tuple[AnyStep, ...]) -> Settlement:
    """Return what the store must write; a thread gets this job's turn only if the job succeeded."""
    record = claimed.record
    keeps_turn = result.status is Status.SUCCEEDED and result.thread_id is not None
    refs = [(reply.provider, reply.thread_ref) for reply in replies(steps) if reply.thread_ref]
    return Settlement(
        record=record,
        epoch=claimed.epoch,
        enqueued_ms=claimed.enqueued_ms,
        result=result,
        new_messages=turn(record.job.messages, steps) if keeps_turn else (),
        provider_ref=refs[-1] if refs else None,
    )


def _thread_id(claimed: Claimed, outcome: Final) -> str | None:
    """Return the thread of the job: a failed one makes none, but names the one that it was to continue.

    Nothing is kept of a job that is not to be recorded, unless it names a thread. One that must not go on with the
    thread does not stand in it either: those that may would see it no more.
    """
    job = claimed.record.job
    if isinstance(outcome, Failed) and outcome.code is Code.THREAD_UNKNOWN:
        return None
    if job.thread_id is not None:
        return job.thread_id
    begins_one = isinstance(outcome, Succeeded) and job.keep_thread and not job.do_not_record
    return f"thread_{claimed.record.id}" if begins_one else None


def _end(outcome: Final) -> dict[str, Any]:
    match outcome:
        case Succeeded():
            return {"output": outcome.output, "tool_calls": outcome.tool_calls}
        case InvalidOutput():
            return {"error_code": outcome.code.value, "error": outcome.error, "raw_reply": outcome.raw_reply}
        case Failed() | OverBudget():
            return {"error_code": outcome.code.value, "error": outcome.error}
        case _:
            return {}
