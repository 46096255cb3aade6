"""What is told of a streamed job while it runs: parts on their way to Redis, in order, and never waited for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from schemas.stream import StreamPart, TextPart, ToolCallPart
from worker.clock import end
from worker.errors import RedisAway
from worker.queue.queue import Claimed, JobQueue

# Between two writes of one job: what a fast provider says meanwhile travels together.
_PAUSE_S = 0.02
# How long the end of a run waits for its last words to be written; what is not by then stands in the result.
_LAST_WORDS_WITHIN_S = 1.0

# A text, or the arguments of a call: pieces of one may be joined.
_Place = tuple[str, int, int, int]


@dataclass(slots=True)
class _Waiting:
    """A part that is not on its way yet, and what was said after it in the same place."""

    part: StreamPart
    more: list[str] = field(default_factory=list)

    def whole(self) -> StreamPart:
        match self.part:
            case TextPart() if self.more:
                return self.part.model_copy(update={"text": self.part.text + "".join(self.more)})
            case ToolCallPart() if self.more:
                return self.part.model_copy(update={"arguments": self.part.arguments + "".join(self.more)})
            case _:
                return self.part


class Telling:
    """The parts of one run of one job.

    While a write is on its way, what comes is joined: a Redis that is slow or away costs no more
    memory than the reply itself. A worker that lost the job tells no more.
    """

    def __init__(self, queue: JobQueue, claimed: Claimed) -> None:
        """Tell of this job, as long as it is ours."""
        self._queue = queue
        self._claimed = claimed
        self._waiting: list[_Waiting] = []
        # Where pieces may still be joined: since the last part that is none of a text or call.
        self._open: dict[_Place, _Waiting] = {}
        self._count = 0
        self._refused = False
        self._news = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._ending = asyncio.Event()

    def tell(self, part: StreamPart) -> None:
        """Have the part written after all those before it."""
        if self._refused:
            return
        place, piece = _place_of(part)
        waiting = self._open.get(place) if place is not None else None
        if waiting is not None:
            waiting.more.append(piece)
        else:
            waiting = _Waiting(part)
            self._waiting.append(waiting)
            if place is None:
                self._open.clear()
            else:
                self._open[place] = waiting
        self._idle.clear()
        self._news.set()

    async def write_forever(self) -> None:
        """Write until cancelled, or until the job is somebody else's."""
        while not self._refused:
            await self._news.wait()
            parts = [waiting.whole() for waiting in self._waiting]
            self._waiting, self._open = [], {}
            self._news.clear()
            try:
                self._refused = not await self._queue.tell(self._claimed, parts, first=self._count)
            except RedisAway:
                # A refusal that will not pass.
                self._refused = True
            self._count += len(parts)
            if self._refused or not self._waiting:
                self._idle.set()
            await self._pause()

    async def written(self, *, within_s: float) -> None:
        """Return once all is written, or will not be."""
        self._ending.set()
        try:
            async with asyncio.timeout(within_s):
                await self._idle.wait()
        except TimeoutError:
            return

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(_PAUSE_S):
                await self._ending.wait()
        except TimeoutError:
            return


@asynccontextmanager
async def telling(queue: JobQueue, claimed: Claimed) -> AsyncIterator[Telling]:
    """Give what tells of the job while the block runs; after its end all is written, where Redis lets it."""
    parts = Telling(queue, claimed)
    writing = asyncio.create_task(parts.write_forever())
    try:
        yield parts
        await parts.written(within_s=_LAST_WORDS_WITHIN_S)
    finally:
        await end([writing])


def _place_of(part: StreamPart) -> tuple[_Place | None, str]:
    """Return where the part may be joined to one before it, and what it would add there."""
    match part:
        case TextPart():
            return ("text", part.step, part.index, 0), part.text
        case ToolCallPart():
            return ("call", part.step, part.index, part.position), part.arguments
        case _:
            return None, ""
