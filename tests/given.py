"""What tests of the core are given: an assistant, jobs of it, results, and what Redis holds of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from redis.asyncio import Redis
from sqlalchemy import Engine
from sqlmodel import Session

from schemas import AssistantConfig, InvokeJob, JobRecord, JobResult, Message, Status, TemplateMessage
from schemas import names as redis_names
from schemas.lane import Lane
from schemas.tables import AssistantEnvironment, AssistantVersion
from worker.admission.releases import Releases
from worker.queue.queue import Claimed, Hint, JobQueue
from worker.tools.calls import OpenedTools

WORKSPACE = "acme"
ADDRESS = f"{WORKSPACE}/reviews/sentiment"
ROUTE = f"{ADDRESS}@production"
NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


def a_job(id: str | None = None, **fields: Any) -> InvokeJob:  # noqa: A002 - the field's name
    """Return a job of the assistant, which asks for one variable."""
    return InvokeJob(**{"assistant": ADDRESS, "id": id, "variables": {"review": "good"}, **fields})


def a_config(**fields: Any) -> AssistantConfig:
    """Return the assistant."""
    template = (TemplateMessage(role="user", content="Review: {{ review }}"),)
    return AssistantConfig(**{"assistant": ADDRESS, "model": "m1", "template": template, **fields})


def a_result(record: JobRecord, **fields: Any) -> JobResult:
    """Return how the job ended: succeeded after one request, unless `fields` say otherwise."""
    known = {
        "job_id": record.id,
        "batch_id": record.batch_id,
        "row": record.row,
        "custom_id": record.job.custom_id,
        "status": Status.SUCCEEDED,
        "output": "positive",
        "assistant": record.job.assistant,
        "thread_id": record.job.thread_id,
        "requests": 1,
        "prompt_tokens": 10,
        "completion_tokens": 2,
        "attempts": 1,
        "finished_at": NOW,
    }
    return JobResult(**{**known, **fields})


def no_tools() -> OpenedTools:
    """Return the tools of an assistant that has none."""
    return OpenedTools(definitions=(), tools={}, callers=frozenset(), on_crash=lambda _tool, _error: None)


def user(content: str) -> Message:
    """Return a message of a user."""
    return Message(role="user", content=content)


def store_assistant(engine: Engine, config: AssistantConfig, *, version: int = 1) -> None:
    """Store the assistant's version and point its environment there."""
    with Session(engine) as session:
        session.add(
            AssistantVersion(
                address=config.assistant,
                version=version,
                workspace=config.workspace,
                fingerprint=str(version),
                config=config.model_dump(mode="json", by_alias=True),
                created_at=NOW,
            )
        )
        session.merge(
            AssistantEnvironment(
                address=config.assistant, environment=config.environment, version=version, updated_at=NOW
            )
        )
        session.commit()


async def released(queue: JobQueue, *, capacity: int = 100) -> list[Hint]:
    """Return the hints of all jobs that workers of this capacity get now."""
    await queue.heartbeat("a-worker", capacity=capacity, ttl_s=60)
    return await release(queue, 1000)


async def release(queue: JobQueue, limit: int) -> list[Hint]:
    """Return the hints of up to `limit` jobs that go to the workers now."""
    return (await Releases(queue._redis).release(limit)).hints


async def claimed(queue: JobQueue) -> Claimed:
    """Return the one job that waits, claimed."""
    (hint,) = await released(queue)
    held = await queue.claim(hint)
    assert held is not None
    return held


def text(value: Any) -> str:
    """Return an answer of Redis as text."""
    return value.decode() if isinstance(value, bytes) else str(value)


async def state(redis: Redis, job_id: str) -> dict[str, str]:
    """Return what Redis holds of a job that has not ended."""
    return {text(key): text(value) for key, value in (await redis.hgetall(redis_names.job(job_id))).items()}


async def waiting(redis: Redis, route: str = ROUTE) -> list[str]:
    """Return the ids of the jobs that wait in the route's lines, each line's head first."""
    lines = sorted(text(key) for key in await redis.keys(redis_names.line(f"*|{route}")))
    return [text(job_id) for line in lines for job_id in await redis.lrange(line, 0, -1)]


async def let_parked_lanes_open(redis: Redis) -> None:
    """Make it as late as the end of every lane's wait."""
    for lane in await redis.zrange(redis_names.PARKED, 0, -1):
        await redis.zadd(redis_names.PARKED, {text(lane): 1})


async def reserved(redis: Redis, lane: Lane) -> tuple[int, int]:
    """Return the requests and tokens that the lane's limiter counts for the last minute."""
    cells = [text(cell).split() for cell in await redis.lrange(f"{redis_names.PREFIX}:cells:{lane.key}", 0, -1)]
    return sum(int(requests) for _, requests, _ in cells), sum(int(tokens) for _, _, tokens in cells)


async def until(holds: Callable[[], Awaitable[object]], *, within_s: float = 10.0) -> None:
    """Return when it holds; TimeoutError if it does not in time."""
    async with asyncio.timeout(within_s):
        while not await holds():  # noqa: ASYNC110 - what Redis holds tells nobody that it changed
            await asyncio.sleep(0)


async def let_leases_lapse(redis: Redis) -> None:
    """Make it as late as the end of every lease, as if the workers had died long ago."""
    for job_id in await redis.zrange(redis_names.LEASES, 0, -1):
        await redis.zadd(redis_names.LEASES, {text(job_id): 1})


async def let_snoozes_end(redis: Redis) -> None:
    """Make it as late as the end of every snooze, and keep their order."""
    for number, job_id in enumerate(await redis.zrange(redis_names.SNOOZED, 0, -1)):
        await redis.zadd(redis_names.SNOOZED, {text(job_id): 1 + number})
