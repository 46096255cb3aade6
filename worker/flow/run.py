"""The completion flow of one job, top to bottom: claim → prepare → converse → decide → settle.

A hint says only that job X may run at epoch N. Whatever else happens, the job is ours only
while Redis says so: a stale hint is a no-op, and each write under an old epoch is refused.
"""

from __future__ import annotations

import time
from dataclasses import replace

from pydantic import ValidationError

from schemas.outcome import Code, Final, Snoozed
from schemas.result import JobResult
from worker.clock import Clock
from worker.errors import RedisAway, without_words
from worker.events import Events, JobCrashed, JobEnded, JobSnoozed, JobStarted, ServiceFault, StaleWorkRefused
from worker.flow.converse import Conversation
from worker.flow.decide import decide_called_off, decide_crash, decide_deaths
from worker.flow.prepare import Prepared, prepare
from worker.flow.settle import result_of, settlement_of
from worker.flow.suspects import Suspects
from worker.queue.leases import Leases
from worker.queue.queue import CalledOff, Claimed, Hint, JobQueue, StaleJobError
from worker.queue.steps import ResultStep
from worker.store.base import Settlement, Store, StoreAway

# How long a finished outcome waits in Redis before SQL is tried again.
STORE_RETRY_S = 5.0
# How long a job waits whose end the database refuses.
UNWRITABLE_RETRY_S = 60.0


class Flow:
    """Runs jobs, one call each; safe to call concurrently on one event loop."""

    def __init__(
        self,
        *,
        queue: JobQueue,
        leases: Leases,
        store: Store,
        conversation: Conversation,
        clock: Clock,
        events: Events,
        default_model: str | None,
        max_attempts: int,
        max_kills: int,
    ) -> None:
        """Take the parts; building them is the composition root's work."""
        self._queue = queue
        self._leases = leases
        self._store = store
        self._conversation = conversation
        self._clock = clock
        self._events = events
        self._default_model = default_model
        self._max_attempts = max_attempts
        self._max_kills = max_kills
        self._suspects = Suspects(max_kills=max_kills)

    async def run(self, hint: Hint) -> None:
        """Run the job that the hint names as far as it goes now."""
        since_s = self._leases.now_s()
        try:
            claimed = await self._claim(hint)
        except RedisAway as away:
            # If the claim was done all the same, its lease ends.
            self._events.emit(ServiceFault(part="redis", error=f"job {hint.job_id}: {away}"))
            return
        if claimed is None:
            return
        try:
            async with self._leases.held(claimed, since_s=since_s):
                with self._suspects.place_for(claimed) as wait:
                    await (self._run(claimed) if wait is None else self._snooze(claimed, wait))
        except StaleJobError as stale:
            self._events.emit(StaleWorkRefused(claimed.id, claimed.batch_id, at=stale.at))
        except RedisAway as away:
            # It is given back when Redis is (leases.py), or its lease ends; the journal tells how far we were.
            self._events.emit(ServiceFault(part="redis", error=f"job {claimed.id}: {away}"))

    async def _claim(self, hint: Hint) -> Claimed | None:
        if self._clock.stopping:
            await self._queue.give_back(hint)
            return None
        claimed = await self._queue.claim(hint)
        if claimed is not None:
            self._events.emit(
                JobStarted(
                    job_id=claimed.id,
                    batch_id=claimed.batch_id,
                    workspace=claimed.record.job.workspace,
                    assistant=claimed.record.job.address,
                    epoch=claimed.epoch,
                    waited_s=(claimed.claimed_ms - claimed.enqueued_ms) / 1000,
                    replayed_steps=len(claimed.journal),
                )
            )
        return claimed

    async def _run(self, claimed: Claimed) -> None:
        began_s = time.monotonic()
        try:
            await self._leave(claimed, await self._work(claimed), began_s)
        except (StaleJobError, RedisAway):
            raise
        except Exception as exc:  # noqa: BLE001 - a job that trips over a bug must end, not come back for ever
            told = self._tell_crash(claimed, exc)
            crash = decide_crash(exc, attempt=claimed.attempts + 1, max_attempts=self._max_attempts)
            if told is not exc and isinstance(crash, Snoozed):
                crash = replace(crash, reason=str(told))
            left = crash if isinstance(crash, Snoozed) else self._ended(await self._so_far(claimed), crash, tried=True)
            await self._leave_crashed(claimed, left, began_s)

    def _tell_crash(self, claimed: Claimed, error: Exception) -> Exception:
        """Tell of the crash; return the error as it may be told."""
        told = without_words(error) if claimed.record.job.do_not_record else error
        self._events.emit(JobCrashed(claimed.id, claimed.batch_id, error=told))
        return told

    async def _so_far(self, claimed: Claimed) -> Claimed:
        """Return the job with what it bought in this run too: it counts, although it came to nothing."""
        try:
            return replace(claimed, journal=await self._queue.journal(claimed))
        except ValidationError:
            return claimed

    async def _leave_crashed(self, claimed: Claimed, left: Settlement | Snoozed, began_s: float) -> None:
        try:
            await self._leave(claimed, left, began_s)
        except (StaleJobError, RedisAway):
            raise
        except Exception as exc:  # noqa: BLE001 - not even its end can be written: wait long, and tell
            self._tell_crash(claimed, exc)
            wait = Snoozed(delay_s=UNWRITABLE_RETRY_S, code=Code.INTERNAL_ERROR, reason=type(exc).__name__)
            await self._snooze(claimed, wait)

    async def _leave(self, claimed: Claimed, next_step: Settlement | JobResult | Snoozed, began_s: float) -> None:
        match next_step:
            case Snoozed():
                await self._snooze(claimed, next_step)
            case JobResult():
                await self._end(claimed, next_step, began_s)
            case Settlement():
                await self._settle(claimed, next_step, began_s)

    async def _work(self, claimed: Claimed) -> Settlement | JobResult | Snoozed:
        """Return what is to be settled, the result that stands already, or a wait."""
        kept = next((step.result for step in claimed.journal if isinstance(step, ResultStep)), None)
        if kept is not None:
            return settlement_of(claimed, kept, steps=claimed.journal)
        # One that has bought something already may need no more.
        goes_on = claimed.called_off is CalledOff.OVER_BUDGET and claimed.journal
        if claimed.called_off is not None and not goes_on:
            return self._ended(claimed, decide_called_off(claimed.called_off))
        # Before anything else of it is read or run; an end that stands in SQL already is found by the settling.
        killed = decide_deaths(claimed.deaths, max_kills=self._max_kills)
        if killed is not None:
            return self._ended(claimed, killed)
        try:
            context = await self._store.context(claimed.record)
        except StoreAway as away:
            # Nothing was bought. The others of the lane would meet the same wall, and so each in its turn.
            return Snoozed(delay_s=STORE_RETRY_S, code=Code.STORE_AWAY, reason=str(away), hold_lane=True)
        if context.settled is not None:
            return context.settled
        prepared = prepare(claimed.record, context, default_model=self._default_model)
        if not isinstance(prepared, Prepared):
            return self._ended(claimed, prepared)
        conversed = await self._conversation.run(claimed, prepared)
        if isinstance(conversed.outcome, Snoozed):
            return conversed.outcome
        steps = conversed.steps
        result = result_of(claimed, conversed.outcome, prepared=prepared, steps=steps, now=self._clock.now())
        return settlement_of(claimed, result, steps=steps)

    def _ended(self, claimed: Claimed, outcome: Final, *, tried: bool = False) -> Settlement:
        """Settle a job that ended without a conversation; replies that it bought before still count."""
        steps = claimed.journal
        result = result_of(claimed, outcome, prepared=None, steps=steps, now=self._clock.now(), tried=tried)
        return settlement_of(claimed, result, steps=steps)

    async def _settle(self, claimed: Claimed, settlement: Settlement, began_s: float) -> None:
        unrecorded = claimed.record.job.do_not_record
        if unrecorded:
            # SQL will not tell its content to who comes after a crash between the two writes.
            await self._keep(claimed, settlement.result)
        try:
            result = await self._store.settle(settlement)
        except StoreAway as away:
            if not unrecorded:
                await self._keep(claimed, settlement.result)
            await self._snooze(claimed, Snoozed(delay_s=STORE_RETRY_S, code=Code.STORE_AWAY, reason=str(away)))
        else:
            await self._end(claimed, result, began_s)

    async def _keep(self, claimed: Claimed, result: JobResult) -> None:
        if not any(isinstance(step, ResultStep) for step in claimed.journal):
            await self._queue.append(claimed, ResultStep(result=result))

    async def _end(self, claimed: Claimed, result: JobResult, began_s: float) -> None:
        # Of a job that ended elsewhere while we stood still, Redis knows only that it has ended, and would agree.
        await self._leases.confirm(claimed)
        self._leases.let_go(claimed)
        await self._queue.finish(claimed, result)
        self._events.emit(
            JobEnded(
                job_id=claimed.id,
                batch_id=claimed.batch_id,
                workspace=claimed.record.job.workspace,
                status=result.status.value,
                code=result.error_code,
                duration_s=time.monotonic() - began_s,
                requests=result.requests,
                prompt_tokens=result.prompt_tokens,
                completion_tokens=result.completion_tokens,
                cost_nano=result.cost_nano,
                attempts=result.attempts,
            )
        )

    async def _snooze(self, claimed: Claimed, snoozed: Snoozed) -> None:
        self._leases.let_go(claimed)
        await self._queue.snooze(
            claimed, delay_s=snoozed.delay_s, burns_attempt=snoozed.burns_attempt, hold_lane=snoozed.hold_lane
        )
        self._events.emit(
            JobSnoozed(
                claimed.id, claimed.batch_id, code=snoozed.code.value, reason=snoozed.reason, delay_s=snoozed.delay_s
            )
        )
