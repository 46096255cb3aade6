"""The tokens of a job as they come, out of its stream in Redis, to whoever waits for them."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from typing import Any

import redis.exceptions
from redis.asyncio import Redis

from producer.gateway.failures import failure
from producer.gateway.problem import Kind, Problem
from producer.gateway.relayed import Mismatch, Relayed
from schemas import names
from schemas.result import JobResult
from schemas.stream import PART_FIELD, STREAM_PART, Begun, StreamPart

# A word that was lost is made up for by looking again: seldom, for ten thousand may wait.
_LOOK_AGAIN_S = 15.0
# While the queue does not answer.
_TRY_AGAIN_S = 1.0
# What a reader takes at once: one that is slow holds no more of it than this.
_PARTS_AT_ONCE = 64


class LostReply(Problem):
    """What was relayed will not be finished: the worker or the provider broke off in the middle."""

    def __init__(self, job_id: str) -> None:
        """Say which job."""
        super().__init__(
            Kind.PROVIDER_FAILED, f"the answer of job {job_id} broke off in the middle; ask again", code="reply_lost"
        )


class Relay:
    """One job's parts, each once, and then its result.

    A worker that takes the job up again tells its journal again (worker/flow/narrate.py), of which only
    what is new is relayed. Parts that are missing in the stream, because Redis was full or lost its last
    second, are made up for by the result.
    """

    def __init__(self, connection: Redis, job_id: str, news: asyncio.Event, *, timeout_s: float) -> None:
        """Read the parts of this job; `news` is set when there may be more."""
        self._redis = connection
        self._job_id = job_id
        self._news = news
        self._timeout_s = timeout_s
        # The last entry that was read: epoch and number.
        self._last = (0, 0)
        # Whether one before it is missing: then what follows in this epoch cannot be told.
        self._missed = False
        self._relayed = Relayed()

    async def parts(self) -> AsyncIterator[StreamPart | JobResult]:
        """Yield the parts in order, without `Begun`, and last the result of a job that succeeded.

        Raises a Problem for one that did not, before the first part if there was none; LostReply when what was
        relayed is void. All text and calls of the result are in the parts before it.
        """
        until_s = time.monotonic() + self._timeout_s
        while time.monotonic() < until_s:
            self._news.clear()
            try:
                result, entries, waits = await self._look()
            except redis.exceptions.RedisError:
                # It answers again, or the time is over.
                await self._wait(_TRY_AGAIN_S)
                continue
            for entry_id, fields in entries:
                for part in self._read(entry_id, fields):
                    yield part
            if entries:
                until_s = time.monotonic() + self._timeout_s
            if len(entries) == _PARTS_AT_ONCE:
                continue
            if result is not None:
                for end in self._end(JobResult.model_validate_json(result)):
                    yield end
                return
            if not entries and not waits:
                # It ended, and its result is gone with its parts: the reader was too slow for what is not kept.
                raise LostReply(self._job_id)
            if not entries:
                await self._wait(_LOOK_AGAIN_S * random.uniform(0.75, 1.25))  # noqa: S311 - no secret
        raise Problem(Kind.TIMED_OUT, f"job {self._job_id} said nothing for {self._timeout_s:g} s", code="timed_out")

    def _read(self, entry_id: bytes, fields: Any) -> list[StreamPart]:
        epoch, number = map(int, entry_id.split(b"-"))
        part = STREAM_PART.validate_json(fields[PART_FIELD.encode()])
        before, self._last = self._last, (epoch, number)
        if isinstance(part, Begun):
            if not self._relayed.goes_on_from(part.steps):
                raise LostReply(self._job_id)
            self._missed = False
            return []
        self._missed = self._missed or (epoch, number) != (before[0], before[1] + 1)
        return [] if self._missed else self._relayed.new_of(part)

    def _end(self, result: JobResult) -> list[StreamPart | JobResult]:
        if not result.succeeded:
            raise failure(result)
        try:
            return [*self._relayed.rest_of(result), result]
        except Mismatch:
            raise LostReply(self._job_id) from None

    async def _look(self) -> tuple[bytes | None, list[Any], bool]:
        """Return the result, the next parts, and whether the job has not ended."""
        # In this order, which is half of a transaction's work: a job goes as its result comes, so one that ends in
        # between is not taken for lost; and once the result is there, so are all parts.
        last = "{}-{}".format(*self._last)
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.exists(names.job(self._job_id))
            pipe.get(names.result(self._job_id))
            pipe.xrange(names.parts(self._job_id), min=f"({last}", count=_PARTS_AT_ONCE)
            exists, result, entries = await pipe.execute()
        return result, entries, bool(exists)

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._news.wait()
        except TimeoutError:
            return
