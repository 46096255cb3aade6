"""What has been enqueued, to wait for and to look at: a job, a batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar, cast

import redis

from producer.answers import answers, text
from producer.cancellation import cancel_script, was_to_end
from producer.lanes import Lanes
from schemas import names
from schemas.batch import BatchStatus
from schemas.errors import ProducerError, ResultTimeout
from schemas.result import JobResult

# A watcher outlives a Redis that is away for this long, as while it is started again.
PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class JobHandle:
    """One enqueued job."""

    _redis: redis.Redis
    id: str

    def result(self, *, timeout_s: float | None = None) -> JobResult:
        """Wait for the job's end and return how it ended.

        Raises ResultTimeout after `timeout_s` (None waits for ever) and ProducerError for a
        job that the queue does not know; a result can be had for names.RESULT_TTL_S.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        for found in _looks(self._redis, names.done_channel(self.id), self._peek, interval_s=5.0, deadline=deadline):
            if found is not None:
                return found
        raise ResultTimeout(f"job {self.id} has not ended after {timeout_s} s; it goes on, ask again")

    def cancel(self) -> bool:
        """End it as cancelled, at once if it waits, else at its next step; False if it had ended: its end stands.

        A call that is in flight is finished and counted, and its reply stands if it is the job's answer.
        ProducerError for a job that the queue does not know.
        """
        with answers():
            reply = self._redis.register_script(cancel_script())(keys=[], args=[self.id])
        return was_to_end(int(cast("int", reply)), self.id)

    def _peek(self) -> JobResult | None:
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.get(names.result(self.id))
            pipe.exists(names.job(self.id))
            result, pending = pipe.execute()
        if result is not None:
            return JobResult.model_validate_json(result)
        if not pending:
            raise ProducerError(f"job {self.id} is not known here, or it ended more than a day ago; look in SQL")
        return None


@dataclass(frozen=True, slots=True)
class BatchHandle:
    """One batch."""

    _redis: redis.Redis
    id: str

    def status(self) -> BatchStatus | None:
        """Return its counts at this moment, or None for a batch that Redis does not hold (any more)."""
        with answers():
            return self._status()

    def _status(self) -> BatchStatus | None:
        fields = self._redis.hgetall(names.batch(self.id))
        if not fields:
            return None
        return BatchStatus.from_fields(self.id, {text(key): text(value) for key, value in fields.items()})

    def pause(self) -> None:
        """Start no more of its jobs until it is resumed; those that run go on."""
        Lanes(self._redis).stop("pause", "batch", self.id)

    def resume(self) -> None:
        """Start its jobs again."""
        Lanes(self._redis).stop("resume", "batch", self.id)

    def cancel(self) -> None:
        """End its jobs as cancelled: those that wait now, those that run at their next step; it takes no more rows."""
        Lanes(self._redis).stop("cancel", "batch", self.id)

    def wait(self, *, timeout_s: float | None = None) -> BatchStatus:
        """Wait until the batch has ended and its row is in SQL; return its final counts."""
        for status in self._watch(interval_s=1.0, timeout_s=timeout_s):
            if status.ended:
                return status
        raise ResultTimeout(f"batch {self.id} has not ended after {timeout_s} s; it goes on, ask again")

    def watch(self, *, interval_s: float = 0.25) -> Iterator[BatchStatus]:
        """Yield the status at least every `interval_s` and at once at the end, which is the last."""
        return self._watch(interval_s=interval_s, timeout_s=None)

    def _watch(self, *, interval_s: float, timeout_s: float | None) -> Iterator[BatchStatus]:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        for status in _looks(self._redis, names.batch(self.id), self._status, interval_s=interval_s, deadline=deadline):
            if status is None:
                raise ProducerError(f"batch {self.id} is not known to this Redis")
            yield status
            if status.ended:
                return


Found = TypeVar("Found")


def _looks(
    connection: redis.Redis, channel: str, look: Callable[[], Found], *, interval_s: float, deadline: float | None
) -> Iterator[Found]:
    """Yield what `look` finds, at least every `interval_s` and at each message of the channel, until the deadline.

    A Redis that is away for less than PATIENCE_S is waited for.
    """
    answered = time.monotonic()
    while True:
        try:
            with connection.pubsub(ignore_subscribe_messages=True) as events:
                # Subscribe before looking, or an end in between would be missed.
                events.subscribe(channel)
                while True:
                    yield look()
                    answered = time.monotonic()
                    left_s = interval_s if deadline is None else min(interval_s, deadline - answered)
                    if left_s <= 0:
                        return
                    # A lost subscription is found by looking again all the same.
                    events.get_message(timeout=left_s)
        except (redis.ConnectionError, redis.TimeoutError) as exc:
            # The client has tried for some seconds by itself, so this is no busy loop.
            if time.monotonic() - answered > PATIENCE_S:
                raise ProducerError(f"Redis has not answered for {PATIENCE_S:g} s: {exc}") from exc
            if deadline is not None and time.monotonic() > deadline:
                return
        except redis.RedisError as exc:
            raise ProducerError(f"Redis refuses: {exc}") from exc
