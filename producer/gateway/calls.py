"""A synchronous call over the queue: enqueue a job, wait for its end by event, return its result.

A call that ends before its job does cancels it: because its caller left, its time was over, or something stands in
the way (obstacles.py); and if this gateway dies, another one does (waiters.py). Only one that is `findable` goes on:
its dialect has named it by the request's `Idempotency-Key`, and the request that will be sent again finds it.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import redis.exceptions
from fastapi import Request
from redis.asyncio import Redis

from producer.entries import entry_of, record_of
from producer.gateway.failures import failure, refusal
from producer.gateway.obstacles import Obstacles
from producer.gateway.problem import Kind, Problem
from producer.gateway.streams import Relay
from producer.gateway.switchboard import Switchboard
from producer.gateway.waiters import Waiters
from schemas import names
from schemas.job import InvokeJob, JobRecord
from schemas.result import JobResult
from schemas.scripts import read_script
from schemas.stream import StreamPart

# A word that was lost is made up for by looking again.
_LOOK_AGAIN_S = 1.0


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A job whose caller waits: `news` is set when there may be something new, `trouble` done when it waits in vain."""

    job_id: str
    news: asyncio.Event
    trouble: asyncio.Future[Problem]


class Calls:
    """Runs jobs for callers who wait for them."""

    def __init__(
        self,
        connection: Redis,
        switchboard: Switchboard,
        obstacles: Obstacles,
        waiters: Waiters,
        *,
        timeout_s: float,
    ) -> None:
        """Use this client; a caller waits for `timeout_s` at most."""
        self._redis = connection
        self._switchboard = switchboard
        self._obstacles = obstacles
        self._waiters = waiters
        self._timeout_s = timeout_s
        self._enqueue_script = connection.register_script(read_script("producer", "enqueue.lua"))

    async def answer(
        self, job: InvokeJob, request: Request, *, findable: bool = False, within: Sequence[str] | None = None
    ) -> JobResult:
        """Run the job and return its result; raises a Problem for one that did not succeed, or takes too long.

        `request` is the caller's, whose body was read: who leaves before the end cancels the job. `within` is
        as in JobRecord.

        It is not waited for the disk: a caller who waits hears of a loss, and asks again.
        """
        async with self._waiting(job, request, findable=findable, within=within) as waiting:
            result = await self._end_of(waiting)
        if not result.succeeded:
            raise failure(result)
        return result

    async def stream(
        self, job: InvokeJob, request: Request, *, findable: bool = False, within: Sequence[str] | None = None
    ) -> AsyncGenerator[StreamPart | JobResult]:
        """Run the job and yield its parts as they come, and last its result; raises as Relay.parts does.

        `job.tell` must be `stream`. Who stops listening has to close the generator, which cancels the job too.
        """
        async with self._waiting(job, request, findable=findable, within=within) as waiting:
            parts = Relay(self._redis, waiting.job_id, waiting.news, timeout_s=self._timeout_s).parts()
            async with aclosing(_unless(waiting.trouble, parts)) as told:
                async for part in told:
                    yield part

    def shut(self) -> None:
        """Let nobody wait any longer: each is told to send the request again, and what waited is cancelled."""
        self._obstacles.stop(_shutdown)

    @asynccontextmanager
    async def _waiting(
        self, job: InvokeJob, request: Request, *, findable: bool, within: Sequence[str] | None
    ) -> AsyncIterator[_Waiting]:
        """Enqueue the job and watch over the wait for it; what leaves the block by an exception cancels the job."""
        record = record_of(job, id=job.id or f"job_{uuid.uuid4().hex}", within=within)
        async with self._switchboard.listening(names.done_channel(record.id)) as news:
            with (
                self._obstacles.watched(record) as trouble,
                _told_when_gone(request, trouble),
                nullcontext() if findable else self._waiters.waiting(record.id),
            ):
                trouble.add_done_callback(lambda _: news.set())
                await self._enqueue(record, findable=findable)
                yield _Waiting(record.id, news, trouble)

    async def _enqueue(self, record: JobRecord, *, findable: bool) -> None:
        """Enqueue the job; Problem 503 where the queue cannot take it."""
        try:
            await self._enqueue_script(keys=[] if findable else [names.WAITERS], args=["", *entry_of(record)])
        except redis.exceptions.RedisError as exc:
            raise refusal(exc) from exc

    async def _end_of(self, waiting: _Waiting) -> JobResult:
        until_s = time.monotonic() + self._timeout_s
        while time.monotonic() < until_s:
            waiting.news.clear()
            with suppress(redis.exceptions.ConnectionError, redis.exceptions.TimeoutError):
                found = await self._redis.get(names.result(waiting.job_id))
                if found is not None:
                    return JobResult.model_validate_json(found)
            if waiting.trouble.done():
                raise waiting.trouble.result()
            with suppress(TimeoutError):
                async with asyncio.timeout(min(_LOOK_AGAIN_S, max(until_s - time.monotonic(), 0))):
                    await waiting.news.wait()
        raise Problem(
            Kind.TIMED_OUT, f"job {waiting.job_id} has not ended after {self._timeout_s:g} s", code="timed_out"
        )


def _shutdown() -> Problem:
    what = "the gateway shuts down; send the request again"
    return Problem(Kind.UNAVAILABLE, what, code="shutting_down", retry_after_s=1)


@contextmanager
def _told_when_gone(request: Request, trouble: asyncio.Future[Problem]) -> Iterator[None]:
    """Let it be trouble when the client closes the connection meanwhile."""

    async def listen() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            continue
        if not trouble.done():
            trouble.set_result(Problem(Kind.CLIENT_GONE, "the client left before the answer came"))

    task = asyncio.create_task(listen())
    try:
        yield
    finally:
        task.cancel()


def _heard(done: asyncio.Future[Any]) -> None:
    if not done.cancelled():
        done.exception()


async def _unless(
    trouble: asyncio.Future[Problem], parts: AsyncIterator[StreamPart | JobResult]
) -> AsyncGenerator[StreamPart | JobResult]:
    """Yield the parts until there is trouble, and raise that."""
    while True:
        coming = asyncio.ensure_future(anext(parts))
        either: set[asyncio.Future[Any]] = {coming, trouble}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            coming.cancel()  # where it is not done
            # It may have failed in the same moment: then nobody else asks why.
            coming.add_done_callback(_heard)
        if not coming.done():
            raise trouble.result()
        try:
            part = coming.result()
        except StopAsyncIteration:
            return
        yield part
