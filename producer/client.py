"""Enqueue jobs and wait for their results; needs a Redis URL and nothing else."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple, TypeVar, cast

import redis
from pydantic import TypeAdapter
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from producer.lanes import Lanes
from producer.send_ahead import SendAhead
from producer.spend import accounts
from producer.written_job import WrittenJob
from schemas import names
from schemas.batch import BatchStatus
from schemas.errors import ProducerError, QueueFull, ResultTimeout
from schemas.job import PRIORITY_MARKS, Identifier, InvokeJob, JobRecord, Rejection
from schemas.lane import Lane, LaneFault
from schemas.money import nanos
from schemas.result import JobResult
from schemas.scripts import read_script, refusal_of_server
from schemas.settings import Settings
from schemas.spend import SpendStatus
from schemas.webhook import checked_url

log = logging.getLogger(__name__)

# One call of the script: as many as keep the server from others for a few ms.
CHUNK_JOBS = 500
# Large jobs are sent in smaller chunks, for several chunks are held at once.
CHUNK_BYTES = 1_000_000
# What is made while others are sent; they then go in one round trip.
CHUNKS_AHEAD = 4
# How long an enqueue waits for the server's next flush to disk (it flushes each second) before it
# asks again, and in all. The first is shorter than the time-out that a client has if nobody says more.
FLUSH_TIMEOUT_S = 2.0
FLUSH_WITHIN_S = 30.0
# A watcher outlives a Redis that is away for this long, as while it is started again.
PATIENCE_S = 60.0
_MAX_CONNECTIONS = 512
# What a server says that has no WAITAOF, whose append-only file is off, or that allows us no such question.
_CANNOT_FLUSH = ("unknown command", "appendonly is disabled", "no permissions")
_IDENTIFIER: TypeAdapter[str] = TypeAdapter(Identifier)


@dataclass(frozen=True, slots=True)
class RejectedRow:
    """A row that cannot run but must have its place in the batch's results."""

    job: InvokeJob
    rejection: Rejection


@dataclass(frozen=True, slots=True)
class NumberedJob:
    """A job whose row in the batch is given: each row once, in any order."""

    job: InvokeJob
    row: int


class _Entry(NamedTuple):
    """One job as enqueue.lua takes it."""

    id: str
    record: str | bytes
    priority_mark: str
    route: str
    workspace: str
    thread_id: str
    row: int | str


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

    def enqueue(self, job: InvokeJob) -> JobHandle:
        """Enqueue one job; enqueueing an id again changes nothing and returns the first one's handle."""
        job_id = job.id or f"job_{uuid.uuid4().hex}"
        self._send([[_entry(JobRecord(id=job_id, job=job))]], batch_id=None, flush=True)
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
    ) -> BatchHandle:
        """Enqueue jobs as one batch, in chunks of CHUNK_JOBS, of which at most some 2 * CHUNKS_AHEAD are held.

        The jobs start at once. The batch ends when the last of them has; then `webhook`, if
        given, is called once. Jobs that have not ended at `expires_at` end as expired, those that
        would spend more than `spend_cap`, in the currency of the configured prices, as over_budget.
        `retry_of` names the batch whose rows these are, to be run anew. All jobs belong to one
        workspace. Sending the same jobs again under the same `batch_id` enqueues only those that are
        missing. If `jobs` raises, the batch stays open: send it again under its id.
        """
        batch_id = _IDENTIFIER.validate_python(batch_id or f"batch_{uuid.uuid4().hex}")
        if webhook is not None:
            checked_url(webhook)
        fields = _batch_fields(
            webhook=webhook, label=label, expires_at=expires_at, spend_cap=spend_cap, retry_of=retry_of
        )
        entries = (_batch_entry(item, batch_id=batch_id, row=row) for row, item in enumerate(jobs))
        workspace: str | None = None
        rows = 0

        def send(chunks: list[list[_Entry]]) -> None:
            self._send(chunks, batch_id=batch_id, flush=False)

        with self._telling_what_was_taken(batch_id), SendAhead(send, ahead=CHUNKS_AHEAD) as sending:
            while chunk := _next_chunk(entries):
                if workspace is None:
                    workspace = chunk[0].workspace
                    self._open_batch(batch_id, {"workspace": workspace, **fields})
                _refuse_other_workspaces(chunk, workspace)
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

    def lane_faults(self, workspace: str) -> list[LaneFault]:
        """Return the walls that the workspace's lanes stand before now."""
        with _answers():
            stored = cast("dict[bytes, bytes]", self._redis.hgetall(names.FAULTS))
        faults = [LaneFault.model_validate_json(fault) for fault in stored.values()]
        return [fault for fault in faults if fault.workspace == workspace]

    def lane_fault(self, lane: Lane) -> LaneFault | None:
        """Return the wall that this lane stands before now, if any."""
        with _answers():
            stored = cast("bytes | None", self._redis.hget(names.FAULTS, lane.key))
        return None if stored is None else LaneFault.model_validate_json(stored)

    def forget_lane_faults(self, job: InvokeJob) -> None:
        """Let the lanes of the job's workspace that stand still be tried at once.

        For whoever has just removed the wall: a new key, a provider that is back.
        """
        with _answers(), self._redis.pipeline(transaction=True) as pipe:
            stored = cast("dict[bytes, bytes]", self._redis.hgetall(names.FAULTS))
            for lane, fault in stored.items():
                if LaneFault.model_validate_json(fault).workspace == job.workspace:
                    pipe.hdel(names.FAULTS, lane)
                    pipe.hdel(names.limit(_text(lane)), "cool_until_us")
                    pipe.zadd(names.PARKED, {lane: 0}, xx=True)
            pipe.publish(names.WAKE_CHANNEL, "faults forgotten")
            pipe.execute()

    @property
    def lanes(self) -> Lanes:
        """Return the lanes, to look at and to stop."""
        return Lanes(self._redis)

    def open_batches(self) -> list[BatchStatus]:
        """Return the batches that have not ended, oldest first."""
        with _answers():
            ids = [_text(batch_id) for batch_id in cast("list[bytes]", self._redis.zrange(names.BATCHES, 0, -1))]
        found = (self.batch(batch_id).status() for batch_id in ids)
        return [status for status in found if status is not None and not status.ended]

    def accounts(self) -> list[SpendStatus]:
        """Return what each workspace spent in each period, by workspace and period."""
        return accounts(self._redis)

    def capacity(self) -> int:
        """Return how many jobs the workers that are alive can run at once; 0 if there are none."""
        with _answers():
            seconds, microseconds = self._redis.time()
            workers = cast("dict[bytes, bytes]", self._redis.hgetall(names.WORKERS))
        now_ms = seconds * 1000 + microseconds // 1000
        told = [[int(number) for number in _text(value).split()] for value in workers.values()]
        return sum(threads for threads, expires_ms in told if expires_ms > now_ms)

    def name_webhook(self, batch_id: str, url: str) -> None:
        """Have `url` called when this batch, which was enqueued before, ends."""
        with _answers():
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
        with _answers(), self._redis.pipeline(transaction=True) as pipe:
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

    def _send(self, chunks: list[list[_Entry]], *, batch_id: str | None, flush: bool) -> None:
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
            with _answers():
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
                raise _refused(exc) or ProducerError(
                    f"the queue did not take the jobs: {exc}; send them again under the same ids"
                ) from exc
        flushed = replies.pop() if flush else None
        for written in replies:
            if isinstance(written, Exception):
                raise _refused(written) or ProducerError(f"the queue did not take the jobs: {written}") from written
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
        with _answers():
            return self._status()

    def _status(self) -> BatchStatus | None:
        fields = self._redis.hgetall(names.batch(self.id))
        if not fields:
            return None
        return BatchStatus.from_fields(self.id, {_text(key): _text(value) for key, value in fields.items()})

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


@contextmanager
def _answers() -> Iterator[None]:
    """Turn the client's errors into ProducerError."""
    try:
        yield
    except redis.RedisError as exc:
        raise _refused(exc) or ProducerError(f"Redis does not answer as it should: {exc}") from exc


def _refused(error: Exception) -> QueueFull | None:
    """Return the error of a server that has no room, or None if it is another."""
    if isinstance(error, redis.OutOfMemoryError):
        full = "the queue's memory is full (maxmemory)"
    elif "MISCONF" in str(error):
        full = f"the queue cannot write to its disk ({error})"
    else:
        return None
    return QueueFull(f"{full}; nothing of what it refused was written: make room, then send or run the same again")


def row_job_id(batch_id: str, row: int) -> str:
    """Return the id of a batch's row for which the caller gave none."""
    return f"{batch_id}.{row}"


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


def _next_chunk(entries: Iterator[_Entry]) -> list[_Entry]:
    """Return the next CHUNK_JOBS jobs, or fewer that are large; none at the end."""
    chunk: list[_Entry] = []
    size = 0
    for entry in entries:
        chunk.append(entry)
        size += len(entry.record)
        if len(chunk) == CHUNK_JOBS or size >= CHUNK_BYTES:
            break
    return chunk


def _batch_entry(item: InvokeJob | WrittenJob | RejectedRow | NumberedJob, *, batch_id: str, row: int) -> _Entry:
    if isinstance(item, NumberedJob):
        return _batch_entry(item.job, batch_id=batch_id, row=item.row)
    if isinstance(item, WrittenJob):
        job_id = row_job_id(batch_id, row)
        # As a JobRecord would be written; ids need no escape.
        record = b'{"id":"%b","job":%b,"batch_id":"%b","row":%d}' % (job_id.encode(), item.json, batch_id.encode(), row)
        return _Entry(job_id, record, PRIORITY_MARKS["batch"], item.route, item.workspace, item.thread_id or "", row)
    rejection = item.rejection if isinstance(item, RejectedRow) else None
    job = item.job if isinstance(item, RejectedRow) else item
    job_id = job.id or row_job_id(batch_id, row)
    return _entry(JobRecord(id=job_id, job=job, batch_id=batch_id, row=row, rejection=rejection))


def _entry(record: JobRecord) -> _Entry:
    job = record.job
    written = record.model_dump_json(exclude_defaults=True, by_alias=True)
    row = "" if record.row is None else record.row
    mark = PRIORITY_MARKS[record.priority]
    return _Entry(record.id, written, mark, job.route, job.workspace, job.thread_id or "", row)


def _refuse_other_workspaces(chunk: list[_Entry], workspace: str) -> None:
    for entry in chunk:
        if entry.workspace != workspace:
            raise ProducerError(
                f"row {entry.row}: workspace '{entry.workspace}' in a batch of workspace '{workspace}'; "
                f"enqueue one batch a workspace"
            )


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _without_password(connection: redis.Redis) -> str:
    kwargs = connection.connection_pool.connection_kwargs
    return str(kwargs.get("path") or f"{kwargs.get('host')}:{kwargs.get('port')}")
