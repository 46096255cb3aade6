"""A synchronous call over the queue: enqueue a job, wait for its end by event, return its result.

A call that ends before its job does cancels it: because its caller left, its time was over, or something stands in
the way (obstacles.py). Only one that is `findable` goes on: its dialect has named it by the request's
`Idempotency-Key`, and the request that will be sent again finds it.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import redis.exceptions
from fastapi import Request
from redis.asyncio import Redis

from producer.answers import refused
from producer.cancellation import cancel_script, was_to_end
from producer.entries import entry_of, record_of
from producer.gateway.failures import failure
from producer.gateway.obstacles import Obstacles
from producer.gateway.problem import Kind, Problem
from producer.gateway.streams import Relay
from producer.gateway.switchboard import Switchboard
from schemas import names
from schemas.job import InvokeJob, JobRecord
from schemas.result import JobResult
from schemas.scripts import read_script
from schemas.stream import StreamPart

log = logging.getLogger(__name__)

# A word that was lost is made up for by looking again.
_LOOK_AGAIN_S = 1.0
# What is still to be cancelled when the gateway ends may take this long.
_CLOSE_WITHIN_S = 5.0
_CANCEL_AGAIN_S = 0.5


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A job whose caller waits: `news` is set when there may be something new, `trouble` done when it waits in vain."""

    job_id: str
    news: asyncio.Event
    trouble: asyncio.Future[Problem]


class Calls:
    """Runs jobs for callers who wait for them."""

    def __init__(self, connection: Redis, switchboard: Switchboard, obstacles: Obstacles, *, timeout_s: float) -> None:
        """Use this client; a caller waits for `timeout_s` at most."""
        self._redis = connection
        self._switchboard = switchboard
        self._obstacles = obstacles
        self._timeout_s = timeout_s
        self._enqueue_script = connection.register_script(read_script("producer", "enqueue.lua"))
        self._cancel_script = connection.register_script(cancel_script())
        # Jobs that are still to be cancelled, and the one task that does it while there are any.
        self._unwanted: set[str] = set()
        self._cancelling: asyncio.Task[None] | None = None

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

    async def enqueue(self, record: JobRecord) -> None:
        """Enqueue the job; Problem 503 where the queue cannot take it."""
        try:
            await self._enqueue_script(keys=[], args=["", *entry_of(record)])
        except redis.exceptions.RedisError as exc:
            full = refused(exc)
            raise Problem(
                Kind.UNAVAILABLE,
                str(full or "the queue does not answer; try again"),
                code="queue_unavailable",
                retry_after_s=1,
            ) from exc

    async def cancel(self, job_id: str) -> bool:
        """End the job as cancelled, as JobHandle.cancel does; False if it had ended, ProducerError if it is unknown."""
        return was_to_end(int(await self._cancel_script(keys=[], args=[job_id])), job_id)

    def shut(self) -> None:
        """Let nobody wait any longer: each is told to send the request again, and what waited is cancelled."""
        self._obstacles.stop(_shutdown)

    async def aclose(self) -> None:
        """Wait a little for what is still to be cancelled."""
        if self._cancelling is not None and not self._cancelling.done():
            await asyncio.wait({self._cancelling}, timeout=_CLOSE_WITHIN_S)
            self._cancelling.cancel()

    @asynccontextmanager
    async def _waiting(
        self, job: InvokeJob, request: Request, *, findable: bool, within: Sequence[str] | None
    ) -> AsyncIterator[_Waiting]:
        """Enqueue the job and watch over the wait for it; what leaves the block by an exception cancels the job."""
        record = record_of(job, id=job.id or f"job_{uuid.uuid4().hex}", within=within)
        try:
            async with self._switchboard.listening(names.done_channel(record.id)) as news:
                with self._obstacles.watched(record) as trouble, _told_when_gone(request, trouble):
                    trouble.add_done_callback(lambda _: news.set())
                    await self.enqueue(record)
                    yield _Waiting(record.id, news, trouble)
        except BaseException:
            # GeneratorExit among them. Not here: who is cut off may wait for nothing more.
            if not findable:
                self._cancel_soon(record.id)
            raise

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

    def _cancel_soon(self, job_id: str) -> None:
        self._unwanted.add(job_id)
        if self._cancelling is None or self._cancelling.done():
            self._cancelling = asyncio.create_task(self._cancel_unwanted())

    async def _cancel_unwanted(self) -> None:
        """Cancel them all, as often as it takes: Redis may be away when the caller leaves."""
        while self._unwanted:
            job_id = next(iter(self._unwanted))
            try:
                await self._cancel_script(keys=[], args=[job_id])
            except redis.exceptions.RedisError as exc:
                log.warning("%d jobs are still to be cancelled, trying again: %s", len(self._unwanted), exc)
                await asyncio.sleep(_CANCEL_AGAIN_S)
            else:
                self._unwanted.discard(job_id)


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
