"""The content of deliveries of jobs that are not to be recorded: SQL may not hold it, so it is sent from Redis.

`aq:result:<job>` is written right after the SQL commit, holds the content until the delivery has
ended, and then as long as `handle.result()` may still ask for it.
"""

from __future__ import annotations

import asyncio
import re

from pydantic import ValidationError
from redis.asyncio import Redis

from schemas import names
from schemas.outcome import Status
from schemas.result import JobResult, KeptResult
from schemas.webhook import WebhookEvent
from worker.errors import RedisAway, redis_away
from worker.webhooks.decide import JITTER, RETRY_AFTER_S, Answer
from worker.webhooks.deliveries import Claimed
from worker.webhooks.events import job_data

# The whole schedule, and what the sends themselves, a stop of the workers or a receiver's pause may add.
_MARGIN_S = 12 * 60 * 60
CONTENT_KEPT_S = int(sum(RETRY_AFTER_S) * (1 + JITTER)) + _MARGIN_S
# A delivery whose content is not there yet comes back after this long.
NOT_YET_RETRY_S = 2.0
# How the words of an HTTP client's error begin, which may quote a broken answer.
_NAME_OF_ERROR = re.compile(r"[A-Z][A-Za-z]+")
# Much shorter than a delivery's lease.
_READ_WITHIN_S = 5.0


class ContentNotYetError(Exception):
    """The job's end is in SQL and not yet in Redis, or Redis is away: nothing is to be sent for now."""


class UnrecordedContent:
    """Reads content from Redis, and lets it go."""

    def __init__(self, redis: Redis) -> None:
        """Use this client."""
        self._redis = redis

    async def body_of(self, claimed: Claimed) -> str:
        """Return the body to sign and send; raises ContentNotYetError.

        It says `content_gone` where the content was lost, or was kept for too short.
        """
        if not claimed.unrecorded or claimed.job_id is None:
            return claimed.body
        event = WebhookEvent.model_validate_json(claimed.body)
        kept = await self._kept(claimed.job_id)
        data = {**event.data, "content_gone": True} if kept is None else job_data(kept, kept.metadata)
        return event.model_copy(update={"data": data}).model_dump_json()

    async def let_go(self, claimed: Claimed) -> None:
        """Keep the content no longer for this delivery; if Redis is away, it goes when its time is over."""
        if not claimed.unrecorded or claimed.job_id is None:
            return
        try:
            async with asyncio.timeout(_READ_WITHIN_S):
                with redis_away():
                    await self._redis.expire(names.result(claimed.job_id), names.UNRECORDED_RESULT_TTL_S)
        except (TimeoutError, RedisAway):
            return

    async def _kept(self, job_id: str) -> KeptResult | None:
        """Return what Redis holds of the job's end; None if it is gone."""
        try:
            async with asyncio.timeout(_READ_WITHIN_S):
                with redis_away():
                    # In this order: a job that has ended by the first look has a result at the second.
                    runs = await self._redis.exists(names.job(job_id))
                    raw = await self._redis.get(names.result(job_id))
        except (TimeoutError, RedisAway) as exc:
            raise ContentNotYetError("Redis does not answer") from exc
        if raw is None and runs:
            raise ContentNotYetError(f"job {job_id} has not ended in Redis")
        try:
            kept = None if raw is None else KeptResult.model_validate_json(raw)
        except ValidationError:  # written by another release; its words would quote the content
            return None
        return None if kept is None or _is_bare(kept) else kept


def without_words(answer: Answer) -> Answer:
    """Return the answer as it may be recorded: receivers quote what they were sent."""
    if answer.error is None:
        return answer
    kind = answer.error.partition(":")[0]
    if answer.status is not None:
        kind = f"HTTP {answer.status}"
    elif not _NAME_OF_ERROR.fullmatch(kind):
        return answer  # our own words: nobody has answered
    return Answer(status=answer.status, error=f"{kind}; the words are not recorded")


def _is_bare(result: JobResult) -> bool:
    """Return whether the result is what SQL has of it, as when a job of the same id is enqueued again."""
    if result.status in (Status.CANCELLED, Status.EXPIRED):
        return False  # they have no content
    return result.without_content() == result
