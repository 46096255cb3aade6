"""What the queue still holds of jobs, threads and batches that may be old enough to be deleted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import redis

from schemas import names
from schemas.retention import ThreadKey


class QueueInUse:
    """Asks Redis; without a connection there is no queue, and nothing is in it. RedisError passes through."""

    def __init__(self, connection: redis.Redis | None) -> None:
        """Use this connection pool; replies may be bytes or text."""
        self._redis = connection

    def jobs(self, job_ids: Sequence[str]) -> set[str]:
        """Return those of the jobs that have not ended for the queue."""
        there = self._there([names.job(job_id) for job_id in job_ids])
        return {job_id for job_id, is_there in zip(job_ids, there, strict=True) if is_there}

    def threads(self, threads: Sequence[ThreadKey]) -> set[ThreadKey]:
        """Return those of the threads that have jobs which have not ended."""
        there = self._there([names.thread(workspace, thread_id) for workspace, thread_id in threads])
        return {key for key, is_there in zip(threads, there, strict=True) if is_there}

    def retried_batches(self) -> set[str]:
        """Return the batches whose rows an open batch runs anew."""
        if self._redis is None:
            return set()
        batch_ids = cast("list[bytes | str]", self._redis.zrange(names.BATCHES, 0, -1))
        with self._redis.pipeline(transaction=False) as pipe:
            for batch_id in batch_ids:
                pipe.hget(names.batch(_text(batch_id)), "retry_of")
            return {_text(retried) for retried in pipe.execute() if retried}

    def _there(self, keys: Sequence[str]) -> list[bool]:
        if self._redis is None or not keys:
            return [False] * len(keys)
        with self._redis.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.exists(key)
            return [bool(found) for found in pipe.execute()]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
