"""Converse: the loop of completions and tool calls of one job, each finished step in the journal."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from schemas.assistant import ProviderKind
from schemas.chat import Message
from schemas.lane import Lane
from schemas.outcome import Code, Failed, Outcome, Snoozed
from worker.clock import Clock
from worker.events import Events, ToolCalled
from worker.flow.call import SHUTTING_DOWN, Calls, Journaled
from worker.flow.decide import decide_called_off, decide_error, decide_tools
from worker.flow.moves import Ask, Rules, RunTools, next_move
from worker.flow.narrate import Narrator
from worker.flow.prepare import Prepared
from worker.flow.request import estimate_key, request_of
from worker.limits.base import Limiter
from worker.limits.learned import Estimates
from worker.providers.base import OnDelta, Provider, Streams, StructuredOutput
from worker.providers.errors import StreamRefused, StructuredOutputUnsupported
from worker.queue.leases import Leases
from worker.queue.queue import CalledOff, Claimed, JobQueue
from worker.queue.steps import AnyStep, ReplyStep, ToolStep
from worker.queue.telling import telling
from worker.spend.spending import Spending
from worker.tools.base import ToolAnswer, Toolbox, Tools, ToolsUnavailable

# Jobs whose runs here are remembered to have been refused a stream.
_REFUSED_AT_MOST = 10_000
_LET_OUT_TOO_EARLY = Snoozed(delay_s=0, code=Code.LIMITER_WAIT, reason="the job's lane is paused or has no room now")


@dataclass(frozen=True, slots=True)
class Conversed:
    """What a conversation came to; `steps` include those of earlier, interrupted runs."""

    outcome: Outcome
    steps: tuple[AnyStep, ...]


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
        spending: Spending,
        leases: Leases,
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
        self._calls = Calls(
            limiter=limiter,
            estimates=estimates,
            spending=spending,
            leases=leases,
            queue=queue,
            events=events,
            max_attempts=max_attempts,
        )
        self._leases = leases
        self._queue = queue
        self._clock = clock
        self._events = events
        self._max_attempts = max_attempts
        # Lanes whose provider refused its native structured output, as far as this process knows.
        self._instructed: set[Lane] = set()
        # How to stream jobs of which the provider seems to have refused more, until an answer shows whether it did.
        # Of each for itself: a refusal may speak of streams because the job does, and says nothing of others then.
        self._streams: dict[str, Streams] = {}

    async def run(self, claimed: Claimed, prepared: Prepared) -> Conversed:
        """Converse to the end, or to a wait; what stands in the journal is not bought or run again."""
        by_schema = prepared.config.tool_calling == "schema"
        provider = self._schema_tools if by_schema else self._providers.get(prepared.provider)
        if provider is None:
            return Conversed(outcome=_no_provider(prepared.provider), steps=claimed.journal)
        try:
            recorded = not claimed.record.job.do_not_record
            opened = self._toolbox.open(prepared.tools, workspace=claimed.record.job.workspace, recorded=recorded)
            async with self._narrating(claimed, prepared) as narrator, opened as tools:
                return await self._converse(claimed, prepared, provider, tools, narrator)
        except ToolsUnavailable as error:
            outcome = decide_tools(error, attempt=claimed.attempts + 1, max_attempts=self._max_attempts)
            if claimed.record.job.do_not_record and isinstance(outcome, Snoozed):
                outcome = replace(outcome, reason=f"{type(error).__name__}; the words are not recorded")
            return Conversed(outcome=outcome, steps=claimed.journal)

    @asynccontextmanager
    async def _narrating(self, claimed: Claimed, prepared: Prepared) -> AsyncIterator[Narrator]:
        """Give what tells the run to a caller who streams; when it ends, all of it is told."""
        if claimed.record.job.tell != "stream":
            yield Narrator(None, texts=False)
            return
        async with telling(self._queue, claimed) as parts:
            narrator = Narrator(parts.tell, texts=prepared.output is None)
            narrator.begin(claimed, prepared)
            yield narrator

    async def _converse(
        self, claimed: Claimed, prepared: Prepared, provider: Provider, tools: Tools, narrator: Narrator
    ) -> Conversed:
        config = prepared.config
        rules = Rules(output=prepared.output, max_steps=prepared.max_steps, max_repairs=config.max_repairs)
        lane = Lane(workspace=claimed.record.job.workspace, provider=provider.name, model=prepared.model)
        steps = claimed.journal
        move = next_move(steps, rules, tools)
        if isinstance(move, Ask | RunTools):
            if claimed.called_off is not None:
                return Conversed(outcome=decide_called_off(claimed.called_off), steps=steps)
            if not await self._queue.meets(claimed, lane):
                return Conversed(outcome=_LET_OUT_TOO_EARLY, steps=steps)
        while True:
            match move:
                case Ask():
                    listener = narrator.listener(len(steps))
                    made = await self._buy(
                        claimed, prepared, move, steps, provider=provider, tools=tools, lane=lane, on_delta=listener
                    )
                    if isinstance(made, Snoozed) and narrator.has_said(len(steps)):
                        # It was relayed, and another try would say something else.
                        made = Failed(code=made.code, error=made.reason)
                    if not isinstance(made, Journaled):
                        return Conversed(outcome=made, steps=steps)
                    narrator.journaled(made.steps, first=len(steps))
                case RunTools():
                    if self._clock.stopping:
                        return Conversed(outcome=SHUTTING_DOWN, steps=steps)
                    made = await self._run_tools(claimed, move, tools, narrator, first=len(steps))
                case _:
                    return Conversed(outcome=move, steps=steps)
            steps += made.steps
            move = next_move(steps, rules, tools)
            if made.called_off is not None and isinstance(move, Ask | RunTools):
                return Conversed(outcome=decide_called_off(made.called_off), steps=steps)

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
        on_delta: OnDelta | None,
    ) -> Journaled | Outcome:
        """Buy one completion.

        A provider without native structured output is asked once more, by instruction; one that refuses to stream
        once or twice more, for less. Each ask has a turn of its own.
        """
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
                streams=self._streams.get(claimed.id, Streams.COUNTED),
            )
            bought = await self._calls.make(
                claimed,
                request,
                index=len(steps),
                kind=prepared.provider,
                provider=provider,
                lane=lane,
                key=key,
                on_delta=on_delta,
            )
            if isinstance(bought, StreamRefused):
                self._ask_for_less(claimed, bought.instead)
                continue
            if not isinstance(bought, StructuredOutputUnsupported):
                if not isinstance(bought, Snoozed):
                    # The provider knows by now what it can, or the refusal only quoted a prompt.
                    self._streams.pop(claimed.id, None)
                return bought
            if request.response_schema is None or prepared.config.structured_output == "native":
                return decide_error(bought, attempt=claimed.attempts + 1, max_attempts=self._max_attempts)
            self._instructed.add(lane)

    def _ask_for_less(self, claimed: Claimed, streams: Streams) -> None:
        # Kept beyond this run: where turns are rare, the job waits for its next one in its line.
        self._streams[claimed.id] = streams
        if len(self._streams) > _REFUSED_AT_MOST:
            # It ran on elsewhere, perhaps.
            del self._streams[next(iter(self._streams))]

    def _structured(self, prepared: Prepared, lane: Lane) -> StructuredOutput:
        wanted = prepared.config.structured_output
        if wanted == "auto":
            return "instructed" if lane in self._instructed else "native"
        return wanted

    async def _run_tools(
        self, claimed: Claimed, move: RunTools, tools: Tools, narrator: Narrator, *, first: int
    ) -> Journaled:
        """Run the calls; each answer is journaled as it comes, from the `first`-th step on, and then final."""
        positions = tuple(move.calls)
        steps: list[AnyStep] = []
        called_off: CalledOff | None = None
        one_by_one = asyncio.Lock()

        async def keep(call: int, answer: ToolAnswer) -> None:
            nonlocal called_off
            told = Message(role="tool", content=answer.content, tool_call_id=answer.call_id, name=answer.name)
            step = ToolStep(position=positions[call], answer=told)
            async with one_by_one:
                called_off = await self._queue.append(claimed, step, index=first + len(steps))
                narrator.journaled((step,), first=first + len(steps))
                steps.append(step)
            self._events.emit(
                ToolCalled(
                    job_id=claimed.id,
                    batch_id=claimed.batch_id,
                    tool=answer.name,
                    failed=answer.failed,
                    duration_s=answer.ended_s - answer.began_s,
                )
            )

        # The reply's place tells rounds apart, so that a call which comes again has the same key.
        keys = [f"{claimed.id}.{move.reply}.{position}" for position in positions]
        await self._leases.confirm(claimed)
        await tools.run(tuple(move.calls.values()), keys=keys, answered=keep)
        return Journaled(tuple(steps), called_off=called_off)


def _no_provider(kind: ProviderKind) -> Failed:
    needed = {"openai": "ASSISTQ_PROVIDER_BASE_URL", "agent": "ASSISTQ_AGENT_BASE_URL"}
    variable = needed.get(kind, f"ASSISTQ_{kind.upper()}_API_KEY")
    return Failed(
        code=Code.PROVIDER_NOT_CONFIGURED, error=f"provider {kind} is not configured; set {variable} for the workers"
    )
