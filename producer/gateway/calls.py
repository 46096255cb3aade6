"""A synchronous call over the queue: enqueue a job, wait for its end by event, return its result."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator

import redis.exceptions
from fastapi import Request
from redis.asyncio import Redis

from producer.answers import refused
from producer.entries import entry_of
from producer.gateway.failures import failure
from producer.gateway.problem import Kind, Problem
from producer.gateway.streams import Relay
from producer.gateway.switchboard import Switchboard
from schemas import names
from schemas.job import InvokeJob, JobRecord
from schemas.result import JobResult
from schemas.scripts import read_script
from schemas.stream import StreamPart

# A word that was lost is made up for by looking again.
_LOOK_AGAIN_S = 1.0


class Calls:
    """Runs jobs for callers who wait for them."""

    def __init__(self, connection: Redis, switchboard: Switchboard, *, timeout_s: float) -> None:
        """Use this client; a caller waits for `timeout_s` at most."""
        self._redis = connection
        self._switchboard = switchboard
        self._timeout_s = timeout_s
        self._enqueue_script = connection.register_script(read_script("producer", "enqueue.lua"))

    async def answer(self, job: InvokeJob, request: Request) -> JobResult:
        """Run the job and return its result; raises a Problem for one that did not succeed, or takes too long.

        `request` is the caller's, whose body was read: who leaves before the end cancels the job.

        It is not waited for the disk: a caller who waits hears of a loss, and asks again.
        """
        record = JobRecord(id=job.id or f"job_{uuid.uuid4().hex}", job=job)
        async with self._switchboard.listening(names.done_channel(record.id)) as news:
            await self.enqueue(record)
            result = await self._end_of(record.id, news)
        if not result.succeeded:
            raise failure(result)
        return result

    async def stream(self, job: InvokeJob, request: Request) -> AsyncGenerator[StreamPart | JobResult]:
        """Run the job and yield its parts as they come, and last its result; raises as Relay.parts does.

        `job.tell` must be `stream`. Who stops listening has to close the generator.
        """
        record = JobRecord(id=job.id or f"job_{uuid.uuid4().hex}", job=job)
        async with self._switchboard.listening(names.done_channel(record.id)) as news:
            await self.enqueue(record)
            async for part in Relay(self._redis, record.id, news, timeout_s=self._timeout_s).parts():
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

    async def _end_of(self, job_id: str, news: asyncio.Event) -> JobResult:
        until_s = time.monotonic() + self._timeout_s
        while time.monotonic() < until_s:
            news.clear()
            found = await self._redis.get(names.result(job_id))
            if found is not None:
                return JobResult.model_validate_json(found)
            try:
                async with asyncio.timeout(_LOOK_AGAIN_S):
                    await news.wait()
            except TimeoutError:
                continue
        raise Problem(Kind.TIMED_OUT, f"job {job_id} has not ended after {self._timeout_s:g} s", code="timed_out")
