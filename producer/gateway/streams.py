"""The tokens of a job as they come, out of its stream in Redis, to whoever waits for them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from redis.asyncio import Redis

from producer.gateway.failures import failure
from producer.gateway.problem import Kind, Problem
from schemas import names
from schemas.result import JobResult
from schemas.stream import PART_FIELD, STREAM_PART, Begun, StreamPart

# A word that was lost is made up for by looking again.
_LOOK_AGAIN_S = 1.0
# What a reader takes at once: one that is slow holds no more of it than this.
_PARTS_AT_ONCE = 256


class LostReply(Problem):
    """What was relayed will not be finished: the worker or the provider broke off in the middle."""

    def __init__(self, job_id: str) -> None:
        """Say which job."""
        super().__init__(
            Kind.PROVIDER_FAILED, f"the answer of job {job_id} broke off in the middle; ask again", code="reply_lost"
        )


class Relay:
    """One job's parts, each once, and then its result."""

    def __init__(self, connection: Redis, job_id: str, news: asyncio.Event, *, timeout_s: float) -> None:
        """Read the parts of this job; `news` is set when there may be more."""
        self._redis = connection
        self._job_id = job_id
        self._news = news
        self._timeout_s = timeout_s
        self._last = "0-0"
        # The step that was relayed last, as far as its reply is not known to be whole.
        self._relayed_step = -1

    async def parts(self) -> AsyncIterator[StreamPart | JobResult]:
        """Yield the parts in order, without `Begun`, and last the result of a job that succeeded.

        Raises a Problem for one that did not, before the first part if there was none; LostReply when what was
        relayed is void.
        """
        until_s = time.monotonic() + self._timeout_s
        while time.monotonic() < until_s:
            self._news.clear()
            result, entries = await self._look()
            for entry_id, fields in entries:
                self._last = entry_id
                part = STREAM_PART.validate_json(fields[PART_FIELD.encode()])
                if isinstance(part, Begun):
                    if self._relayed_step >= part.steps:
                        raise LostReply(self._job_id)
                    continue
                self._relayed_step = max(self._relayed_step, part.step)
                yield part
            if len(entries) == _PARTS_AT_ONCE:
                continue
            if result is not None:
                found = JobResult.model_validate_json(result)
                if not found.succeeded:
                    raise failure(found)
                yield found
                return
            if entries:
                until_s = time.monotonic() + self._timeout_s
                continue
            try:
                async with asyncio.timeout(_LOOK_AGAIN_S):
                    await self._news.wait()
            except TimeoutError:
                continue
        raise Problem(Kind.TIMED_OUT, f"job {self._job_id} said nothing for {self._timeout_s:g} s", code="timed_out")

    async def _look(self) -> tuple[bytes | None, list[Any]]:
        # The result first: once it is there, so are all parts.
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.get(names.result(self._job_id))
            pipe.xrange(names.parts(self._job_id), min=f"({self._last}", count=_PARTS_AT_ONCE)
            result, entries = await pipe.execute()
        return result, entries
