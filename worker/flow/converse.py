"""Converse: the loop of completions and tool calls of one job, each finished step in the journal."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from schemas.assistant import ProviderKind
from schemas.chat import Message, Usage
from schemas.lane import Lane
from schemas.outcome import Cancelled, Code, Failed, Outcome, Snoozed
from worker.clock import Clock
from worker.events import Events, LimiterWaited, ProviderCalled, ToolCalled
from worker.flow.decide import decide_error, decide_refusal, decide_tools
from worker.flow.moves import Ask, Rules, RunTools, next_move
from worker.flow.prepare import Prepared
from worker.flow.request import estimate_key, request_of
from worker.limits.base import Granted, Limiter, Stopped
from worker.limits.learned import EstimateKey, Estimates
from worker.providers.base import ChatRequest, Provider, StructuredOutput
from worker.providers.errors import ProviderError, StructuredOutputUnsupported, Unreachable
from worker.queue.queue import Claimed, JobQueue
from worker.queue.steps import AnyStep, ReplyStep, ToolsStep
from worker.tools.base import Toolbox, Tools, ToolsUnavailable

# A wait that is shorter is not worth telling about.
_TELL_WAITS_FROM_S = 0.001
# Somebody may have cancelled a job that waited for longer.
_LOOK_AGAIN_AFTER_S = 0.25
_LET_OUT_TOO_EARLY = Snoozed(delay_s=0, code=Code.LIMITER_WAIT, reason="the job's lane is paused or has no room now")
_SHUTTING_DOWN = Snoozed(delay_s=0, code=Code.SHUTTING_DOWN, reason="the worker shuts down")


@dataclass(frozen=True, slots=True)
class Conversed:
    """What a conversation came to; `steps` include those of earlier, interrupted runs."""

    outcome: Outcome
    steps: tuple[AnyStep, ...]


@dataclass(frozen=True, slots=True)
class _Journaled:
    """A reply that stands in the journal; `cancelled` says that the job was called off meanwhile."""

    step: ReplyStep
    cancelled: bool


class Conversation:
    """Asks providers under the limiter and runs tools, and journals each step before anything else happens."""

    def __init__(
        self,
        *,
        providers: Mapping[ProviderKind, Provider],
        schema_tools: Provider | None,
        toolbox: Toolbox,
        limiter: Limiter,
        estimates: Estimates,
        queue: JobQueue,
        clock: Clock,
        events: Events,
        max_attempts: int,
    ) -> None:
        """Take the parts; `max_attempts` bounds the tries that end in a provider's fault.

        `schema_tools` serves the assistants whose `tool_calling` is `schema`.
        """
        self._providers = providers
        self._schema_tools = schema_tools
        self._toolbox = toolbox
        self._limiter = limiter
        self._estimates = estimates
        self._queue = queue
        self._clock = clock
        self._events = events
        self._max_attempts = max_attempts
        # Lanes whose provider refused its native structured output, as far as this process knows.
        self._instructed: set[Lane] = set()

    async def run(self, claimed: Claimed, prepared: Prepared) -> Conversed:
        """Converse to the end, or to a wait; what stands in the journal is not bought or run again."""
        by_schema = prepared.config.tool_calling == "schema"
        provider = self._schema_tools if by_schema else self._providers.get(prepared.provider)
        if provider is None:
            return Conversed(outcome=_no_provider(prepared.provider), steps=claimed.journal)
        try:
            recorded = not claimed.record.job.do_not_record
            opened = self._toolbox.open(prepared.tools, workspace=claimed.record.job.workspace, recorded=recorded)
            async with opened as tools:
                return await self._converse(claimed, prepared, provider, tools)
        except ToolsUnavailable as error:
            outcome = decide_tools(error, attempt=claimed.attempts + 1, max_attempts=self._max_attempts)
            if claimed.record.job.do_not_record and isinstance(outcome, Snoozed):
                outcome = replace(outcome, reason=f"{type(error).__name__}; the words are not recorded")
            return Conversed(outcome=outcome, steps=claimed.journal)

    async def _converse(self, claimed: Claimed, prepared: Prepared, provider: Provider, tools: Tools) -> Conversed:
        config = prepared.config
        rules = Rules(output=prepared.output, max_steps=prepared.max_steps, max_repairs=config.max_repairs)
        lane = Lane(workspace=claimed.record.job.workspace, provider=provider.name, model=prepared.model)
        if not await self._queue.meets(claimed, lane):
            return Conversed(outcome=_LET_OUT_TOO_EARLY, steps=claimed.journal)
        steps = claimed.journal
        while True:
            move = next_move(steps, rules, tools)
            step: AnyStep
            match move:
                case Ask():
                    bought = await self._buy(claimed, prepared, move, steps, provider=provider, tools=tools, lane=lane)
                    if not isinstance(bought, _Journaled):
                        return Conversed(outcome=bought, steps=steps)
                    step, cancelled = bought.step, bought.cancelled
                case RunTools():
                    if self._clock.stopping:
                        return Conversed(outcome=_SHUTTING_DOWN, steps=steps)
                    step, cancelled = await self._run_tools(claimed, move, tools, index=len(steps))
                case _:
                    return Conversed(outcome=move, steps=steps)
            steps = (*steps, step)
            if cancelled and isinstance(next_move(steps, rules, tools), Ask | RunTools):
                return Conversed(outcome=Cancelled(), steps=steps)

    async def _buy(
        self,
        claimed: Claimed,
        prepared: Prepared,
        ask: Ask,
        steps: tuple[AnyStep, ...],
        *,
        provider: Provider,
        tools: Tools,
        lane: Lane,
    ) -> _Journaled | Outcome:
        """Buy one completion; a provider without native structured output is asked once more, by instruction."""
        key = estimate_key(claimed.record, prepared)
        refs = [step.thread_ref for step in steps if isinstance(step, ReplyStep) and step.thread_ref]
        while True:
            structured = self._structured(prepared, lane)
            request = request_of(
                claimed.record,
                prepared,
                ask,
                tools,
                structured=structured,
                step_id=f"{claimed.id}.{len(steps)}",
                thread_ref=refs[-1] if refs else prepared.thread_ref,
            )
            bought = await self._call(
                claimed, request, index=len(steps), kind=prepared.provider, provider=provider, lane=lane, key=key
            )
            if not isinstance(bought, StructuredOutputUnsupported):
                return bought
            if request.response_schema is None or prepared.config.structured_output == "native":
                return decide_error(bought, attempt=claimed.attempts + 1, max_attempts=self._max_attempts)
            self._instructed.add(lane)

    def _structured(self, prepared: Prepared, lane: Lane) -> StructuredOutput:
        wanted = prepared.config.structured_output
        if wanted == "auto":
            return "instructed" if lane in self._instructed else "native"
        return wanted

    async def _call(
        self,
        claimed: Claimed,
        request: ChatRequest,
        *,
        index: int,
        kind: ProviderKind,
        provider: Provider,
        lane: Lane,
        key: EstimateKey,
    ) -> _Journaled | Outcome | StructuredOutputUnsupported:
        expected = self._estimates.expect(request, key)
        tokens = expected.total
        answer = await self._limiter.reserve(lane, tokens=tokens, owner=claimed.id)
        if isinstance(answer, Stopped):
            return _SHUTTING_DOWN
        if not isinstance(answer, Granted):
            return decide_refusal(answer, tokens=tokens)
        if answer.waited_s >= _TELL_WAITS_FROM_S:
            self._events.emit(LimiterWaited(claimed.id, claimed.batch_id, lane, answer.waited_s))
        if answer.waited_s >= _LOOK_AGAIN_AFTER_S and await self._queue.called_off(claimed):
            await self._limiter.cancel(lane, answer)
            return Cancelled()
        began_s = time.monotonic()
        try:
            reply = await provider.complete(request)
        except ProviderError as error:
            self._tell(claimed, lane, began_s, outcome=type(error).__name__, status=error.http_status, usage=Usage())
            return await self._met(error, claimed, lane, answer)
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
            tool_calls=reply.tool_calls,
            alternatives=reply.alternatives,
            thread_ref=reply.thread_ref,
            exchanged=reply.exchanged,
            output=reply.output,
            retrieved=reply.retrieved,
        )
        grant = replace(answer, late_s=answer.late_s + reply.sent_after_s)
        try:
            # Before anything else: from here on the reply is ours, whatever becomes of this worker.
            cancelled = await self._queue.append(claimed, step, index=index)
            self._estimates.learn(key, expected, reply.usage)
        finally:
            # What it used is used, whoever the job belongs to by now.
            await self._limiter.settle(lane, grant, used_tokens=step.usage.total_tokens or tokens)
        if reply.told is not None:
            await self._limiter.believe(lane, reply.told)
        self._tell(claimed, lane, began_s, outcome="ok", status=200, usage=step.usage)
        return _Journaled(step, cancelled=cancelled)

    async def _run_tools(self, claimed: Claimed, move: RunTools, tools: Tools, *, index: int) -> tuple[ToolsStep, bool]:
        answers = await tools.run(move.calls)
        step = ToolsStep(
            answers=tuple(
                Message(role="tool", content=answer.content, tool_call_id=answer.call_id, name=answer.name)
                for answer in answers
            )
        )
        cancelled = await self._queue.append(claimed, step, index=index)
        for answer in answers:
            self._events.emit(
                ToolCalled(
                    job_id=claimed.id,
                    batch_id=claimed.batch_id,
                    tool=answer.name,
                    failed=answer.failed,
                    duration_s=answer.ended_s - answer.began_s,
                )
            )
        return step, cancelled

    async def _met(
        self, error: ProviderError, claimed: Claimed, lane: Lane, grant: Granted
    ) -> Outcome | StructuredOutputUnsupported:
        outcome = decide_error(error, attempt=claimed.attempts + 1, max_attempts=self._max_attempts)
        if claimed.record.job.do_not_record and isinstance(outcome, Snoozed):
            # The reason ends in the log and with the lane, and providers quote what they were sent.
            outcome = replace(outcome, reason=_reason_without_content(error))
        wall = isinstance(outcome, Snoozed) and outcome.fault
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
        if isinstance(error, StructuredOutputUnsupported):
            return error
        if isinstance(outcome, Snoozed):
            if outcome.hold_lane:
                # The wall is the lane's: one cool-down for all its lines and workers.
                await self._limiter.cool_down(lane, delay_s=outcome.delay_s)
            if wall:
                await self._limiter.fault(lane, code=outcome.code, reason=outcome.reason)
        return outcome

    def _tell(
        self, claimed: Claimed, lane: Lane, began_s: float, *, outcome: str, status: int | None, usage: Usage
    ) -> None:
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
            )
        )


def _reason_without_content(error: ProviderError) -> str:
    if isinstance(error, Unreachable):
        return str(error)  # nobody has answered, so nobody is quoted
    said = "" if error.http_status is None else f" (HTTP {error.http_status})"
    return f"{type(error).__name__}{said}; the words are not recorded"


def _no_provider(kind: ProviderKind) -> Failed:
    needed = {"openai": "ASSISTQ_PROVIDER_BASE_URL", "agent": "ASSISTQ_AGENT_BASE_URL"}
    variable = needed.get(kind, f"ASSISTQ_{kind.upper()}_API_KEY")
    return Failed(
        code=Code.PROVIDER_NOT_CONFIGURED, error=f"provider {kind} is not configured; set {variable} for the workers"
    )
