"""Enqueue jobs and wait for their results; needs a Redis URL and nothing else."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from typing import Any, cast

import redis
from pydantic import TypeAdapter
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from producer.answers import answers, refused, text
from producer.capacity import live_capacity
from producer.entries import (
    Entry,
    NumberedJob,
    RejectedRow,
    batch_entry,
    entry_of,
    next_chunk,
    record_of,
    refuse_other_workspaces,
)
from producer.handles import BatchHandle, JobHandle
from producer.lanes import Lanes
from producer.send_ahead import SendAhead
from producer.spend import accounts
from producer.written_job import WrittenJob
from schemas import names
from schemas.batch import BatchStatus
from schemas.errors import ProducerError, QueueFull
from schemas.job import Identifier, InvokeJob
from schemas.lane import Lane, LaneFault
from schemas.money import nanos
from schemas.scripts import read_script, refusal_of_server
from schemas.settings import Settings
from schemas.spend import SpendStatus
from schemas.webhook import checked_url

log = logging.getLogger(__name__)

# What is made while others are sent; they then go in one round trip.
CHUNKS_AHEAD = 4
# How long an enqueue waits for the server's next flush to disk (it flushes each second) before it
# asks again, and in all. The first is shorter than the time-out that a client has if nobody says more.
FLUSH_TIMEOUT_S = 2.0
FLUSH_WITHIN_S = 30.0
_MAX_CONNECTIONS = 512
# What a server says that has no WAITAOF, whose append-only file is off, or that allows us no such question.
_CANNOT_FLUSH = ("unknown command", "appendonly is disabled", "no permissions")
_IDENTIFIER: TypeAdapter[str] = TypeAdapter(Identifier)


class Producer:
    """Makes jobs and reads their results; thread-safe.

    An enqueue that returns has been written, and, on a server with `WAITAOF` and its
    append-only file on, is on disk.
    """

    def __init__(self, connection: redis.Redis, *, flush_within_s: float = FLUSH_WITHIN_S) -> None:
        """Use this connection pool; replies may be bytes or text. An enqueue waits for the disk so long."""
        self._redis = connection
        self._flush_within_s = flush_within_s
        self._enqueue_script = connection.register_script(read_script("producer", "enqueue.lua"))
        self._seal_script = connection.register_script(read_script("producer", "seal.lua"))
        self._confirm_script = connection.register_script(read_script("producer", "confirm.lua"))
        self._flushes = True

    @classmethod
    def from_env(cls) -> Producer:
        """Connect to `ASSISTQ_REDIS_URL`, or to the embedded server that `assistq up` runs here."""
        return cls.from_settings(Settings.from_env())

    @classmethod
    def from_settings(cls, settings: Settings, *, redis_url: str | None = None) -> Producer:
        """Connect to `redis_url`, else to the server of the settings; ProducerError if it does not answer."""
        url = redis_url or settings.effective_redis_url
        connection = redis.Redis.from_url(
            url,
            max_connections=_MAX_CONNECTIONS,
            socket_connect_timeout=5,
            socket_timeout=30,
            retry=Retry(ExponentialBackoff(cap=1.0, base=0.05), 5),
        )
        try:
            refusal = refusal_of_server(connection.info("server"))
        except redis.RedisError as exc:
            if settings.redis_url is None and redis_url is None:
                raise ProducerError(
                    f"no queue: ASSISTQ_REDIS_URL is not set and no `assistq up` runs with data directory "
                    f"{settings.data_dir}; set ASSISTQ_REDIS_URL, or start `assistq up`"
                ) from exc
            raise ProducerError(
                f"Redis does not answer at {_without_password(connection)}: {exc}; check ASSISTQ_REDIS_URL"
            ) from exc
        if refusal is not None:
            raise ProducerError(refusal)
        return cls(connection)

    def enqueue(self, job: InvokeJob, *, within: Sequence[str] | None = None) -> JobHandle:
        """Enqueue one job; enqueueing an id again changes nothing and returns the first one's handle.

        With `within` it goes on with its thread only if all of that is of these assistants.
        """
        job_id = job.id or f"job_{uuid.uuid4().hex}"
        self._send([[entry_of(record_of(job, id=job_id, within=within))]], batch_id=None, flush=True)
        return JobHandle(self._redis, job_id)

    def enqueue_many(
        self,
        jobs: Iterable[InvokeJob | WrittenJob | RejectedRow | NumberedJob],
        *,
        webhook: str | None = None,
        batch_id: str | None = None,
        label: str = "",
        expires_at: datetime | None = None,
        spend_cap: Decimal | float | str | None = None,
        retry_of: str | None = None,
        within: Sequence[str] | None = None,
    ) -> BatchHandle:
        """Enqueue jobs as one batch, in chunks of CHUNK_JOBS, of which at most some 2 * CHUNKS_AHEAD are held.

        The jobs start at once. The batch ends when the last of them has; then `webhook`, if
        given, is called once. Jobs that have not ended at `expires_at` end as expired, those that
        would spend more than `spend_cap`, in the currency of the configured prices, as over_budget.
        `retry_of` names the batch whose rows these are, to be run anew; `within` is as in `enqueue`. All jobs
        belong to one workspace. Sending the same jobs again under the same `batch_id` enqueues only those that are
        missing. If `jobs` raises, the batch stays open: send it again under its id.
        """
        batch_id = _IDENTIFIER.validate_python(batch_id or f"batch_{uuid.uuid4().hex}")
        if webhook is not None:
            checked_url(webhook)
        fields = _batch_fields(
            webhook=webhook, label=label, expires_at=expires_at, spend_cap=spend_cap, retry_of=retry_of
        )
        entries = (batch_entry(item, batch_id=batch_id, row=row, within=within) for row, item in enumerate(jobs))
        workspace: str | None = None
        rows = 0

        def send(chunks: list[list[Entry]]) -> None:
            self._send(chunks, batch_id=batch_id, flush=False)

        with self._telling_what_was_taken(batch_id), SendAhead(send, ahead=CHUNKS_AHEAD) as sending:
            while chunk := next_chunk(entries):
                if workspace is None:
                    workspace = chunk[0].workspace
                    self._open_batch(batch_id, {"workspace": workspace, **fields})
                refuse_other_workspaces(chunk, workspace)
                rows += len(chunk)
                sending.put(chunk)
        if workspace is None:
            raise ProducerError("a batch needs at least one job; the iterable was empty")
        self._seal(batch_id, rows=rows)
        return BatchHandle(self._redis, batch_id)

    def job(self, job_id: str) -> JobHandle:
        """Return the handle of a job that was enqueued before."""
        return JobHandle(self._redis, job_id)

    def batch(self, batch_id: str) -> BatchHandle:
        """Return the handle of a batch that was enqueued before."""
        return BatchHandle(self._redis, batch_id)

    def cancel(self, job_id: str) -> bool:
        """End one job as cancelled, see JobHandle.cancel; False if it had ended."""
        return self.job(job_id).cancel()

    def has_jobs(self, workspace: str, thread_id: str) -> bool:
        """Return whether jobs of the thread have not ended."""
        with answers():
            return bool(self._redis.exists(names.thread(workspace, thread_id)))

    def lane_faults(self, workspace: str) -> list[LaneFault]:
        """Return the walls that the workspace's lanes stand before now."""
        with answers():
            stored = cast("dict[bytes, bytes]", self._redis.hgetall(names.FAULTS))
        faults = [LaneFault.model_validate_json(fault) for fault in stored.values()]
        return [fault for fault in faults if fault.workspace == workspace]

    def lane_fault(self, lane: Lane) -> LaneFault | None:
        """Return the wall that this lane stands before now, if any."""
        with answers():
            stored = cast("bytes | None", self._redis.hget(names.FAULTS, lane.key))
        return None if stored is None else LaneFault.model_validate_json(stored)

    def forget_lane_faults(self, job: InvokeJob) -> None:
        """Let the lanes of the job's workspace that stand still be tried at once.

        For whoever has just removed the wall: a new key, a provider that is back.
        """
        with answers(), self._redis.pipeline(transaction=True) as pipe:
            stored = cast("dict[bytes, bytes]", self._redis.hgetall(names.FAULTS))
            for lane, fault in stored.items():
                if LaneFault.model_validate_json(fault).workspace == job.workspace:
                    pipe.hdel(names.FAULTS, lane)
                    pipe.hdel(names.limit(text(lane)), "cool_until_us")
                    pipe.zadd(names.PARKED, {lane: 0}, xx=True)
            pipe.publish(names.WAKE_CHANNEL, "faults forgotten")
            pipe.execute()

    @property
    def lanes(self) -> Lanes:
        """Return the lanes, to look at and to stop."""
        return Lanes(self._redis)

    def open_batches(self) -> list[BatchStatus]:
        """Return the batches that have not ended, oldest first."""
        with answers():
            ids = [text(batch_id) for batch_id in cast("list[bytes]", self._redis.zrange(names.BATCHES, 0, -1))]
        found = (self.batch(batch_id).status() for batch_id in ids)
        return [status for status in found if status is not None and not status.ended]

    def accounts(self) -> list[SpendStatus]:
        """Return what each workspace spent in each period, by workspace and period."""
        return accounts(self._redis)

    def capacity(self) -> int:
        """Return how many jobs the workers that are alive can run at once; 0 if there are none."""
        with answers():
            seconds, microseconds = self._redis.time()
            workers = cast("dict[bytes, bytes]", self._redis.hgetall(names.WORKERS))
        now_ms = seconds * 1000 + microseconds // 1000
        return live_capacity(workers.values(), now_ms)

    def name_webhook(self, batch_id: str, url: str) -> None:
        """Have `url` called when this batch, which was enqueued before, ends."""
        with answers():
            self._redis.hset(names.batch(batch_id), "webhook", checked_url(url))

    @property
    def connection(self) -> redis.Redis:
        """Return the connection pool, for what looks at the queue beside it."""
        return self._redis

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    def _open_batch(self, batch_id: str, fields: dict[str, str]) -> None:
        key = names.batch(batch_id)
        now_ms = int(time.time() * 1000)
        with answers(), self._redis.pipeline(transaction=True) as pipe:
            for field, value in {**fields, "created_ms": str(now_ms)}.items():
                pipe.hsetnx(key, field, value)
            if fields["webhook"]:
                # A batch that is submitted again, to go on, may name its webhook only now.
                pipe.hset(key, "webhook", fields["webhook"])
            pipe.zadd(names.BATCHES, {batch_id: now_ms}, nx=True)
            if "expires_ms" in fields:
                pipe.zadd(names.EXPIRING, {batch_id: int(fields["expires_ms"])}, nx=True)
            pipe.execute()

    def _seal(self, batch_id: str, *, rows: int) -> None:
        def write(pipe: Any) -> None:
            self._seal_script(keys=[names.batch(batch_id)], args=[batch_id, rows], client=pipe)

        self._execute(write, flush=True)

    def _send(self, chunks: list[list[Entry]], *, batch_id: str | None, flush: bool) -> None:
        """Enqueue each chunk by one call of the script, all in one round trip."""

        def write(pipe: Any) -> None:
            for chunk in chunks:
                args: list[str | bytes | int] = [batch_id or ""]
                for entry in chunk:
                    args += entry
                self._enqueue_script(keys=[], args=args, client=pipe)

        self._execute(write, flush=flush)

    @contextmanager
    def _telling_what_was_taken(self, batch_id: str) -> Iterator[None]:
        try:
            yield
        except QueueFull as full:
            with answers():
                taken = cast("bytes | None", self._redis.hget(names.batch(batch_id), "enqueued"))
            raise QueueFull(f"{full}; {int(taken or 0)} rows of batch {batch_id} were taken") from full

    def _execute(self, write: Callable[[Any], None], *, flush: bool) -> None:
        """Do the writes in one round trip; with `flush`, do them again until the server says that they are on disk.

        Again, and not only ask again: a server that died in between may have lost them.
        """
        deadline_s = time.monotonic() + self._flush_within_s
        while True:
            left_s = max(deadline_s - time.monotonic(), 0.001)
            if self._is_written(write, wait_s=min(left_s, FLUSH_TIMEOUT_S) if flush else 0.0):
                return
            if time.monotonic() >= deadline_s:
                raise ProducerError(
                    f"the jobs are in the queue, but after {self._flush_within_s:g} s the server has not confirmed "
                    f"that they are on its disk (slow, or `appendfsync no`?); send them again under the same ids"
                )

    def _is_written(self, write: Callable[[Any], None], *, wait_s: float) -> bool:
        """Do the writes; return whether they are as safe as was asked: for no `wait_s`, no matter where."""
        flush = wait_s > 0 and self._flushes
        with self._redis.pipeline(transaction=False) as pipe:
            write(pipe)
            if flush:
                self._confirm_script(keys=[names.FLUSH], client=pipe)
                # 0 would wait for ever.
                pipe.execute_command("WAITAOF", 1, 0, max(1, int(wait_s * 1000)))
            try:
                replies = pipe.execute(raise_on_error=False)
            except redis.RedisError as exc:
                raise refused(exc) or ProducerError(
                    f"the queue did not take the jobs: {exc}; send them again under the same ids"
                ) from exc
        flushed = replies.pop() if flush else None
        for written in replies:
            if isinstance(written, Exception):
                raise refused(written) or ProducerError(f"the queue did not take the jobs: {written}") from written
        return not flush or self._is_flushed(flushed)

    def _is_flushed(self, reply: Any) -> bool:
        if not isinstance(reply, Exception):
            return bool(reply[0] >= 1)
        if not any(words in str(reply) for words in _CANNOT_FLUSH):
            raise ProducerError(
                f"the jobs are in the queue, but the server did not confirm that they are on its disk: {reply}; "
                f"send them again under the same ids"
            ) from reply
        # No WAITAOF (before Redis 7.2), or the append-only file is off: say so once.
        self._flushes = False
        log.warning("enqueued jobs may be lost if the Redis server dies: it cannot confirm writes to disk (%s)", reply)
        return True


def _batch_fields(
    *,
    webhook: str | None,
    label: str,
    expires_at: datetime | None,
    spend_cap: Decimal | float | str | None,
    retry_of: str | None,
) -> dict[str, str]:
    """Return what a batch's hash in Redis says of it from the beginning."""
    fields = {"webhook": webhook or "", "label": label}
    if expires_at is not None:
        if expires_at.tzinfo is None:
            raise ProducerError(f"expires_at {expires_at} has no time zone; say which, as with datetime.now(UTC)")
        fields["expires_ms"] = str(int(expires_at.timestamp() * 1000))
    if spend_cap is not None:
        fields["spend_cap_nano"] = str(nanos(spend_cap))
    if retry_of is not None:
        fields["retry_of"] = retry_of
    return fields


def _without_password(connection: redis.Redis) -> str:
    kwargs = connection.connection_pool.connection_kwargs
    return str(kwargs.get("path") or f"{kwargs.get('host')}:{kwargs.get('port')}")
