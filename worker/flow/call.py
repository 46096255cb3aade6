"""One provider call: under caps and limiter, its reply in the journal before anything else happens."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from schemas.assistant import ProviderKind
from schemas.chat import Usage
from schemas.lane import Lane
from schemas.outcome import Code, Outcome, Snoozed
from worker.events import Events, LimiterWaited, ProviderCalled
from worker.flow.decide import decide_budget, decide_called_off, decide_error, decide_refusal
from worker.flow.turn import await_turn
from worker.limits.base import Granted, Limiter, Stopped
from worker.limits.learned import EstimateKey, Estimates
from worker.providers.base import ChatRequest, OnDelta, Provider
from worker.providers.errors import ProviderError, StreamRefused, StructuredOutputUnsupported, Unreachable
from worker.queue.leases import Leases
from worker.queue.queue import CalledOff, Claimed, JobQueue
from worker.queue.steps import AnyStep, ReplyStep
from worker.spend.spending import Quote, Spending

# A wait that is shorter is not worth telling about.
_TELL_WAITS_FROM_S = 0.001
SHUTTING_DOWN = Snoozed(delay_s=0, code=Code.SHUTTING_DOWN, reason="the worker shuts down")

# Refusals of what we added ourselves: the same may be asked for in another way, in another turn.
AskOtherwise = StructuredOutputUnsupported | StreamRefused


@dataclass(frozen=True, slots=True)
class Journaled:
    """Steps that stand in the journal; `called_off` says why the job is to end, if it was called off meanwhile."""

    steps: tuple[AnyStep, ...]
    called_off: CalledOff | None


class Calls:
    """Makes provider calls, each with room under the caps and a turn of its lane's limiter."""

    def __init__(
        self,
        *,
        limiter: Limiter,
        estimates: Estimates,
        spending: Spending,
        leases: Leases,
        queue: JobQueue,
        events: Events,
        max_attempts: int,
    ) -> None:
        """Take the parts; `max_attempts` bounds the tries that end in a provider's fault."""
        self._limiter = limiter
        self._estimates = estimates
        self._spending = spending
        self._leases = leases
        self._queue = queue
        self._events = events
        self._max_attempts = max_attempts

    async def make(
        self,
        claimed: Claimed,
        request: ChatRequest,
        *,
        index: int,
        kind: ProviderKind,
        provider: Provider,
        lane: Lane,
        key: EstimateKey,
        on_delta: OnDelta | None = None,
    ) -> Journaled | Outcome | AskOtherwise:
        """Wait for the turn, call, and journal the reply as the job's `index`-th step.

        `on_delta` is told what the provider says as it comes.
        """
        expected = self._estimates.expect(request, key)
        tokens = expected.total
        quote = self._spending.quote(claimed, lane, expected, max_tokens=request.max_tokens)
        # Before the turn: who has no room under a cap takes none.
        against = await self._spending.reserve(claimed, quote)
        if against is not None:
            return decide_budget(against)
        answer = await await_turn(self._limiter, self._queue, claimed, lane=lane, tokens=tokens)
        if isinstance(answer, CalledOff):
            return decide_called_off(answer)
        if isinstance(answer, Stopped):
            return SHUTTING_DOWN
        if not isinstance(answer, Granted):
            return decide_refusal(answer, tokens=tokens)
        if answer.waited_s >= _TELL_WAITS_FROM_S:
            self._events.emit(LimiterWaited(claimed.id, claimed.batch_id, lane, answer.waited_s))
        granted_s = time.monotonic()
        try:
            await self._leases.confirm(claimed)
            await self._spending.send(claimed, quote)
        except BaseException:
            await self._limiter.cancel(lane, answer)
            raise
        began_s = time.monotonic()
        try:
            reply = await provider.complete(request, on_delta=on_delta)
        except ProviderError as error:
            self._tell(claimed, lane, began_s, outcome=type(error).__name__, status=error.http_status)
            return await self._met(error, claimed, lane, answer, quote)
        except BaseException:
            # The job was lost, or we trip over a bug: the call's fate is unknown.
            await self._limiter.settle(lane, answer, used_tokens=tokens, fault_over=False)
            raise
        step = ReplyStep(
            provider=kind,
            content=reply.content,
            finish_reason=reply.finish_reason,
            refusal=reply.refusal,
            model=reply.model or request.model,
            # Only the limiter guesses what a provider that counts nothing used.
            usage=reply.usage or Usage(),
            cost_nano=quote.cost(reply.usage),
            tool_calls=reply.tool_calls,
            alternatives=reply.alternatives,
            thread_ref=reply.thread_ref,
            exchanged=reply.exchanged,
            output=reply.output,
            retrieved=reply.retrieved,
        )
        grant = replace(answer, late_s=answer.late_s + began_s - granted_s + reply.sent_after_s)
        try:
            # Before anything else: from here on the reply is ours, whatever becomes of this worker.
            called_off = await self._queue.append(claimed, step, index=index, account=quote.account)
            self._estimates.learn(key, expected, reply.usage)
        finally:
            # What it used is used, whoever the job belongs to by now.
            await self._limiter.settle(lane, grant, used_tokens=step.usage.total_tokens or tokens)
        if reply.told is not None:
            await self._limiter.believe(lane, reply.told)
        self._tell(claimed, lane, began_s, outcome="ok", status=200, usage=step.usage, cost_nano=step.cost_nano)
        return Journaled((step,), called_off=called_off)

    async def _met(
        self, error: ProviderError, claimed: Claimed, lane: Lane, grant: Granted, quote: Quote
    ) -> Outcome | AskOtherwise:
        outcome = decide_error(error, attempt=claimed.attempts + 1, max_attempts=self._max_attempts)
        if claimed.record.job.do_not_record and isinstance(outcome, Snoozed):
            # The reason ends in the log and with the lane, and providers quote what they were sent.
            outcome = replace(outcome, reason=_reason_without_content(error))
        wall = isinstance(outcome, Snoozed) and outcome.fault
        if error.certainly_not_billed:
            await self._spending.free(claimed, quote)
        if error.certainly_not_sent:
            await self._limiter.cancel(lane, grant)
        elif error.certainly_not_charged:
            # Providers count refused requests too. One that judged the request itself is no wall (any more).
            await self._limiter.settle(lane, grant, used_tokens=0, fault_over=not wall)
        else:
            # Nobody knows what it used; it is over all the same.
            await self._limiter.settle(lane, grant, used_tokens=grant.tokens, fault_over=False)
        if error.told is not None:
            await self._limiter.believe(lane, error.told)
        if isinstance(error, AskOtherwise):
            return error
        if isinstance(outcome, Snoozed):
            if outcome.hold_lane:
                # The wall is the lane's: one cool-down for all its lines and workers.
                await self._limiter.cool_down(lane, delay_s=outcome.delay_s)
            if wall:
                await self._limiter.fault(lane, code=outcome.code, reason=outcome.reason)
        return outcome

    def _tell(
        self,
        claimed: Claimed,
        lane: Lane,
        began_s: float,
        *,
        outcome: str,
        status: int | None,
        usage: Usage | None = None,
        cost_nano: int = 0,
    ) -> None:
        usage = usage or Usage()
        self._events.emit(
            ProviderCalled(
                job_id=claimed.id,
                batch_id=claimed.batch_id,
                lane=lane,
                outcome=outcome,
                http_status=status,
                duration_s=time.monotonic() - began_s,
                prompt_tokens=usage.prompt_tokens,
                completion_tokens=usage.completion_tokens,
                cost_nano=cost_nano,
            )
        )


def _reason_without_content(error: ProviderError) -> str:
    if isinstance(error, Unreachable):
        return str(error)  # nobody has answered, so nobody is quoted
    said = "" if error.http_status is None else f" (HTTP {error.http_status})"
    return f"{type(error).__name__}{said}; the words are not recorded"
