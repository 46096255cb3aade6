"""Settle: what one job leaves behind, gathered for one SQL transaction. Pure."""

from __future__ import annotations

from datetime import datetime

from schemas.chat import Message, Usage
from schemas.outcome import Failed, Final, InvalidOutput, Status, Succeeded, status_of
from schemas.result import JobResult
from worker.flow.prepare import Prepared
from worker.queue.queue import Claimed
from worker.queue.steps import ReplyStep
from worker.store.base import Settlement


def result_of(
    claimed: Claimed,
    outcome: Final,
    *,
    prepared: Prepared | None,
    replies: tuple[ReplyStep, ...],
    now: datetime,
    tried: bool = True,
) -> JobResult:
    """Return how the job ended; `prepared` is None for a job that could not even be prepared, or crashed.

    `tried` says whether this run was an attempt, which counts.
    """
    record = claimed.record
    usage = sum((reply.usage for reply in replies), Usage())
    succeeded = isinstance(outcome, Succeeded)
    faulty = outcome if isinstance(outcome, Failed | InvalidOutput) else None
    return JobResult(
        job_id=record.id,
        batch_id=record.batch_id,
        row=record.row,
        custom_id=record.job.custom_id,
        status=status_of(outcome),
        output=outcome.output if isinstance(outcome, Succeeded) else None,
        assistant=record.job.assistant,
        version=prepared.assistant.version if prepared else record.job.version,
        # A failed job makes no thread; one that was to continue a thread still names it.
        thread_id=record.job.thread_id or (f"thread_{record.id}" if succeeded else None),
        model=replies[-1].model if replies else (prepared.request.model if prepared else None),
        requests=len(replies),
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        attempts=claimed.attempts + tried,
        error_code=faulty.code.value if faulty else None,
        error=faulty.error if faulty else None,
        raw_reply=outcome.raw_reply if isinstance(outcome, InvalidOutput) else None,
        finished_at=now,
    )


def settlement_of(claimed: Claimed, result: JobResult, *, replies: tuple[ReplyStep, ...]) -> Settlement:
    """Return what the store must write; a thread gets this job's turn only if the job succeeded."""
    record = claimed.record
    turn: tuple[Message, ...] = ()
    if result.status is Status.SUCCEEDED:
        turn = (*record.job.messages, Message(role="assistant", content=replies[-1].content))
    return Settlement(
        record=record, epoch=claimed.epoch, enqueued_ms=claimed.enqueued_ms, result=result, new_messages=turn
    )
