"""Converse: buy the completion that the job asks for, once."""

from __future__ import annotations

import time
from dataclasses import dataclass

from schemas.chat import Usage
from schemas.outcome import Code, Outcome, Snoozed
from worker.clock import Clock
from worker.events import Events, LimiterWaited, ProviderCalled
from worker.flow.decide import decide_error, decide_refusal, decide_reply
from worker.flow.prepare import Prepared
from worker.limits.base import Granted, Limiter
from worker.limits.estimate import call_tokens
from worker.providers.base import Provider
from worker.providers.errors import ProviderError
from worker.queue.queue import Claimed, JobQueue
from worker.queue.steps import ReplyStep

# A wait that is shorter is not worth telling about.
_TELL_WAITS_FROM_S = 0.001


@dataclass(frozen=True, slots=True)
class Conversed:
    """What a conversation came to; `replies` includes those of earlier, interrupted runs."""

    outcome: Outcome
    replies: tuple[ReplyStep, ...]


class Conversation:
    """Asks the provider under the limiter, and journals each reply before anything else happens."""

    def __init__(
        self, *, provider: Provider, limiter: Limiter, queue: JobQueue, clock: Clock, events: Events, max_attempts: int
    ) -> None:
        """Take the parts; `max_attempts` bounds the tries that end in a provider's fault."""
        self._provider = provider
        self._limiter = limiter
        self._queue = queue
        self._clock = clock
        self._events = events
        self._max_attempts = max_attempts

    async def run(self, claimed: Claimed, prepared: Prepared) -> Conversed:
        """Return the outcome; a reply that stands in the journal is not bought again."""
        replies = tuple(step for step in claimed.journal if isinstance(step, ReplyStep))
        if not replies:
            bought = await self._buy(claimed, prepared)
            if not isinstance(bought, ReplyStep):
                return Conversed(outcome=bought, replies=())
            replies = (bought,)
        return Conversed(outcome=decide_reply(replies[-1], prepared.output), replies=replies)

    async def _buy(self, claimed: Claimed, prepared: Prepared) -> ReplyStep | Outcome:
        lane, request = prepared.lane, prepared.request
        tokens = call_tokens(request.messages, max_tokens=request.max_tokens)
        answer = await self._limiter.reserve(lane, tokens=tokens)
        if not isinstance(answer, Granted):
            return decide_refusal(answer, tokens=tokens)
        if not await self._await_turn(claimed, prepared, answer):
            await self._limiter.cancel(lane, answer)
            return Snoozed(delay_s=0, code=Code.SHUTTING_DOWN, reason="the worker shuts down")
        began_s = time.monotonic()
        try:
            reply = await self._provider.complete(request)
        except ProviderError as error:
            self._tell(
                claimed, prepared, began_s, outcome=type(error).__name__, status=error.http_status, usage=Usage()
            )
            return await self._met(error, claimed, prepared, answer)
        step = ReplyStep(
            content=reply.content,
            finish_reason=reply.finish_reason,
            refusal=reply.refusal,
            model=reply.model or request.model,
            usage=reply.usage,
        )
        # Before anything else: from here on the reply is ours, whatever becomes of this worker.
        await self._queue.append(claimed, step)
        # A provider that counts nothing keeps what was reserved.
        used = reply.usage.total_tokens or tokens
        await self._limiter.settle(lane, answer, used_tokens=used)
        self._tell(claimed, prepared, began_s, outcome="ok", status=200, usage=reply.usage)
        return step

    async def _await_turn(self, claimed: Claimed, prepared: Prepared, grant: Granted) -> bool:
        """Sleep until the grant's turn; False if the worker began to shut down meanwhile."""
        if grant.wait_s >= _TELL_WAITS_FROM_S:
            self._events.emit(LimiterWaited(claimed.id, claimed.batch_id, prepared.lane, grant.wait_s))
        return await self._clock.sleep(grant.wait_s)

    async def _met(self, error: ProviderError, claimed: Claimed, prepared: Prepared, grant: Granted) -> Outcome:
        lane = prepared.lane
        outcome = decide_error(error, attempt=claimed.attempts + 1, max_attempts=self._max_attempts)
        wall = isinstance(outcome, Snoozed) and outcome.fault
        if error.certainly_not_sent:
            await self._limiter.cancel(lane, grant)
        elif error.certainly_not_charged:
            # Providers count refused requests too. One that judged the request itself is no wall (any more).
            await self._limiter.settle(lane, grant, used_tokens=0, fault_over=not wall)
        if isinstance(outcome, Snoozed) and outcome.hold_line:
            # The wall is the lane's: one cool-down for all its lines and workers.
            await self._limiter.cool_down(lane, delay_s=outcome.delay_s)
        if isinstance(outcome, Snoozed) and outcome.fault:
            await self._limiter.fault(lane, code=outcome.code, reason=outcome.reason)
        return outcome

    def _tell(
        self, claimed: Claimed, prepared: Prepared, began_s: float, *, outcome: str, status: int | None, usage: Usage
    ) -> None:
        self._events.emit(
            ProviderCalled(
                job_id=claimed.id,
                batch_id=claimed.batch_id,
                lane=prepared.lane,
                outcome=outcome,
                http_status=status,
                duration_s=time.monotonic() - began_s,
                prompt_tokens=usage.prompt_tokens,
                completion_tokens=usage.completion_tokens,
            )
        )
