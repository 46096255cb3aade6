"""Narrate: what a caller who streams is told of a run: from deltas and finished steps to parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from schemas.job import JobRecord
from schemas.stream import Begun, StepEnded, StreamPart, TextPart, ToolCallPart, ToolResultPart
from worker.flow.prepare import Prepared
from worker.providers.base import CallDelta, Delta, OnDelta, ResultDelta, TextDelta
from worker.queue.queue import Claimed
from worker.queue.steps import AnyStep, ReplyStep, ToolStep

Tell = Callable[[StreamPart], None]


class Narrator:
    """Tells the parts of one run; without a `tell` nobody listens, and nothing is told.

    A reply that is to fit an output spec is not told as it comes: it may have to be repaired, and its value is not
    its text. The result tells it.
    """

    def __init__(self, tell: Tell | None, *, texts: bool) -> None:
        """Tell everything but the `texts` of replies, or these too."""
        self._tell = tell
        self._texts = texts
        # Of the reply that is being told: its step, what each choice has said, the calls that were told by id.
        self._step = -1
        self._said: dict[int, list[str]] = {}
        self._calls: dict[str, int] = {}

    def begin(self, claimed: Claimed, prepared: Prepared) -> None:
        """Tell that this run begins, and what stands in the journal: its last words may not have been told."""
        if self._tell is None:
            return
        epoch, steps, thread_id = claimed.epoch, len(claimed.journal), _thread_of(claimed.record)
        self._tell(Begun(epoch=epoch, steps=steps, model=prepared.model, thread_id=thread_id))
        self.journaled(claimed.journal, first=0)

    def listener(self, step: int) -> OnDelta | None:
        """Return whom the provider tells what it says, for the reply that becomes this step."""
        tell = self._tell
        if tell is None or not self._texts:
            return None
        self._begin_step(step)

        def on_delta(delta: Delta) -> None:
            match delta:
                case TextDelta():
                    self._said.setdefault(delta.index, []).append(delta.text)
                    tell(TextPart(step=step, text=delta.text, index=delta.index))
                case CallDelta():
                    if delta.id is not None:
                        self._calls[delta.id] = delta.position
                    tell(
                        ToolCallPart(
                            step=step,
                            position=delta.position,
                            id=delta.id,
                            name=delta.name,
                            arguments=delta.arguments,
                        )
                    )
                case ResultDelta():
                    # What follows is another reply of the service's own conversation.
                    self._said = {}
                    tell(ToolResultPart(step=step, call_id=delta.call_id, name=delta.name, content=delta.content))

        return on_delta

    def has_said(self, step: int) -> bool:
        """Return whether something was told of the reply that was to become this step."""
        return step == self._step and bool(self._said or self._calls)

    def journaled(self, steps: Sequence[AnyStep], *, first: int) -> None:
        """Tell steps that stand in the journal, from its `first`-th on: what was not told of them yet."""
        if self._tell is None:
            return
        for at, step in enumerate(steps, first):
            match step:
                case ReplyStep():
                    self._replied(at, step, self._tell)
                case ToolStep(answer=answer):
                    call_id = answer.tool_call_id or ""
                    self._tell(ToolResultPart(step=at, call_id=call_id, name=answer.name, content=answer.text))
                case _:
                    continue

    def _replied(self, step: int, reply: ReplyStep, tell: Tell) -> None:
        if step != self._step:
            self._begin_step(step)
            # What went before the answer of a service that runs its own tools is not known any more.
            tells_text = self._texts and not reply.exchanged
        else:
            tells_text = self._texts
        for index, text in enumerate((reply.content, *reply.alternatives) if tells_text else ()):
            said = "".join(self._said.get(index, ()))
            if len(text) > len(said) and text.startswith(said):
                tell(TextPart(step=step, text=text[len(said) :], index=index))
        for call in reply.tool_calls:
            if call.id not in self._calls:
                position = max((-1, *self._calls.values())) + 1
                self._calls[call.id] = position
                tell(ToolCallPart(step=step, position=position, id=call.id, name=call.name, arguments=call.arguments))
        tell(StepEnded(step=step, finish_reason=reply.finish_reason, usage=reply.usage))

    def _begin_step(self, step: int) -> None:
        self._step, self._said, self._calls = step, {}, {}


def _thread_of(record: JobRecord) -> str | None:
    """Return the thread that the job will have if it succeeds (settle.py)."""
    job = record.job
    if job.thread_id is not None:
        return job.thread_id
    return f"thread_{record.id}" if job.keep_thread and not job.do_not_record else None
