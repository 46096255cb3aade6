"""Jobs that have not ended, in Redis: claimed under a lease, journaled, ended.

Every write for a job names the epoch under which it was claimed; Redis refuses the write
when a later epoch exists (StaleJobError). Keys: schemas/names.py; each script's head
documents what it touches.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib import resources
from typing import Any

from pydantic import ValidationError
from redis.asyncio import Redis

from schemas import names
from schemas.job import JobRecord
from schemas.lane import Lane
from schemas.result import JobResult, KeptResult
from schemas.scripts import read_script
from schemas.stream import StreamPart
from worker.errors import redis_away
from worker.events import Events
from worker.insist import insist, to_its_end
from worker.queue.steps import AnyStep, ReplyStep, parse_step
from worker.queue.unreadable import unreadable
from worker.webhooks.unrecorded import CONTENT_KEPT_S

# A worker that stops renewing loses its jobs after this long.
LEASE_S = 6.0
RENEW_EVERY_S = 2.0
# A released job whose hint gets lost, or stands behind long jobs, is released again after this long.
CLAIM_WITHIN_S = 8.0
# Jobs whose turn under their lane's limit is further away than this wait in their lines. Enough
# that a lane never idles while a job is on its way, and few enough to keep places free.
HORIZON_S = 1.0
# A step that is on its way when its job is cut off may take this long; less than a shutdown gives what it cuts off.
_LAST_STEP_WITHIN_S = 1.0
# Each may look through many snoozed jobs, while the server does nothing else.
_EXPIRED_AT_ONCE = 3


class StaleJobError(Exception):
    """The job is no longer the caller's: it was released again, or has ended."""

    def __init__(self, job_id: str, *, at: str) -> None:
        """Say which job, and at which step the write was refused."""
        self.job_id = job_id
        self.at = at
        super().__init__(f"job {job_id} is no longer ours at {at}")


@dataclass(frozen=True, slots=True)
class Hint:
    """A word to a worker: job X may run at epoch N."""

    job_id: str
    epoch: int


class CalledOff(StrEnum):
    """Why a job is to end without another call: what came first of a cancellation, its batch's time and its cap."""

    CANCELLED = "cancelled"
    EXPIRED = "expired"
    OVER_BUDGET = "over_budget"


@dataclass(frozen=True, slots=True)
class Claimed:
    """A job that is ours until its lease ends.

    `lane_key` is the lane whose room it was given, if that was known; `called_off` says that it is to end
    without another call, and why. `capped` says that its batch has a cap.
    `deaths` is how often a lease on it ended while it ran.
    """

    record: JobRecord
    epoch: int
    attempts: int
    enqueued_ms: int
    claimed_ms: int
    journal: tuple[AnyStep, ...]
    lane_key: str | None = None
    called_off: CalledOff | None = None
    capped: bool = False
    deaths: int = 0

    @property
    def hint(self) -> Hint:
        """Return the hint under which it was claimed."""
        return Hint(job_id=self.id, epoch=self.epoch)

    @property
    def id(self) -> str:
        """Return the job's id."""
        return self.record.id

    @property
    def batch_id(self) -> str | None:
        """Return the job's batch, if it has one."""
        return self.record.batch_id


@dataclass(frozen=True, slots=True)
class Swept:
    """How many jobs a sweep returned to their lines."""

    recovered: int
    due: int


class JobQueue:
    """The worker's side of the queue; bound to one event loop."""

    def __init__(self, redis: Redis, events: Events | None = None) -> None:
        """Use this client; it must retry by itself while the server is away. `events` hear of longer outages."""
        self._redis = redis
        self._events = events or Events()
        self._scripts = {
            name.removesuffix(".lua"): redis.register_script(read_script("worker.queue", name)) for name in _lua_files()
        }

    async def heartbeat(self, process: str, *, capacity: int, ttl_s: float) -> None:
        """Tell how many jobs this process can run at once; without a word it counts as gone after `ttl_s`."""
        await self._run("heartbeat", [names.WORKERS], [process, capacity, int(ttl_s * 1000)])

    async def leave(self, process: str) -> None:
        """Take this process's capacity out of the sum."""
        with redis_away():
            await self._redis.hdel(names.WORKERS, process)

    async def drain(self, limit: int) -> list[Hint]:
        """Release up to `limit` waiting jobs that were called off; the caller runs them itself, to their end."""
        reply = await self._run("drain", [], [limit, int(CLAIM_WITHIN_S * 1000)])
        return hints_of(reply)

    async def claim(self, hint: Hint) -> Claimed | None:
        """Make the job ours for LEASE_S; None if the hint is stale."""
        reply = await self._run(
            "claim",
            [names.job(hint.job_id), names.journal(hint.job_id)],
            [hint.job_id, hint.epoch, int(LEASE_S * 1000), uuid.uuid4().hex],
        )
        if reply is None:
            return None
        raw, attempts, enqueued_ms, now_ms, lane_key, called_off, capped, deaths, *entries = reply
        try:
            record, journal = JobRecord.model_validate_json(raw), tuple(parse_step(entry) for entry in entries)
        except ValidationError as exc:
            # Written by another release, say. It must end, or it would come back for ever.
            record, journal = unreadable(hint.job_id, raw, exc), ()
        return Claimed(
            record=record,
            epoch=hint.epoch,
            attempts=int(attempts),
            enqueued_ms=int(enqueued_ms),
            claimed_ms=int(now_ms),
            journal=journal,
            lane_key=_text(lane_key) or None,
            called_off=_called_off(called_off),
            capped=bool(capped),
            deaths=int(deaths),
        )

    async def meets(self, claimed: Claimed, lane: Lane) -> bool:
        """Tell that the job's route meets this lane, if that is news.

        Returns whether the job may go on: where nobody knew its lane it may have been let out
        although that is paused or has no room. Then it should be snoozed, for no time.
        """
        if claimed.lane_key == lane.key:
            return True
        args = [claimed.record.job.route, lane.key, claimed.id, int(HORIZON_S * 1e6), int(CLAIM_WITHIN_S * 1000)]
        return bool(await self._run("meet", [], args))

    async def give_back(self, hint: Hint) -> bool:
        """Put a job that was released to us back to the head of its line; False if the hint is stale."""
        return bool(await self._run("give_back", [names.job(hint.job_id)], [hint.job_id, hint.epoch]))

    async def renew(self, held: Iterable[Hint]) -> set[str]:
        """Renew the leases of these jobs; return the ids of those that were lost."""
        args: list[str | int] = [int(LEASE_S * 1000)]
        for hint in held:
            args += [hint.job_id, hint.epoch]
        return {_text(job_id) for job_id in await self._run("renew", [names.LEASES], args)}

    async def called_off(self, claimed: Claimed) -> CalledOff | None:
        """Return why the job is to end, if it was called off since it was claimed."""
        return _called_off_running(await self._run("called_off", [], [claimed.id]))

    async def append(
        self, claimed: Claimed, step: AnyStep, *, index: int | None = None, account: str = ""
    ) -> CalledOff | None:
        """Append a finished step to the job's journal, as its `index`-th if that is known; raises StaleJobError.

        What a reply cost becomes spent with it: of the `account` (names.spend), and of what the job holds.

        Returns why the job was called off, if it was meanwhile: the step counts, and there should be no other.
        """
        keys = [names.job(claimed.id), names.journal(claimed.id)]
        args = [claimed.epoch, step.model_dump_json(), -1 if index is None else index]
        args += [claimed.id, step.cost_nano if isinstance(step, ReplyStep) else "", account]
        appended = await to_its_end(self._insist("append", claimed, keys, args), within_s=_LAST_STEP_WITHIN_S)
        if appended == 0:
            raise StaleJobError(claimed.id, at="journal")
        return _called_off_running(appended)

    async def tell(self, claimed: Claimed, parts: Sequence[StreamPart], *, first: int) -> bool:
        """Tell parts of the job to who streams it, the `first`-th of this epoch and those after it.

        False if the job is no longer the caller's.
        """
        keys = [names.job(claimed.id), names.parts(claimed.id)]
        args = [claimed.id, claimed.epoch, first, names.PARTS_TTL_S, *(part.model_dump_json() for part in parts)]
        return bool(await self._insist("tell", claimed, keys, args))

    async def journal(self, claimed: Claimed) -> tuple[AnyStep, ...]:
        """Return the finished steps of a job that is ours, those of this run included."""
        with redis_away():
            entries = await self._redis.lrange(names.journal(claimed.id), 0, -1)
        return tuple(parse_step(entry) for entry in entries)

    async def snooze(self, claimed: Claimed, *, delay_s: float, burns_attempt: bool, hold_lane: bool) -> None:
        """Put the job back to wait; raises StaleJobError."""
        keys = [names.job(claimed.id), names.SNOOZED]
        args = [claimed.id, claimed.epoch, int(delay_s * 1000), int(burns_attempt), int(hold_lane)]
        if not await self._insist("snooze", claimed, keys, args):
            raise StaleJobError(claimed.id, at="snooze")

    async def finish(self, claimed: Claimed, result: JobResult) -> None:
        """End the job; raises StaleJobError."""
        kept, keep_s = _kept(claimed, result)
        keys = [names.job(claimed.id), names.journal(claimed.id), names.result(claimed.id)]
        args = [
            claimed.id,
            claimed.epoch,
            result.status.value,
            kept.model_dump_json(),
            keep_s,
            result.requests,
            result.prompt_tokens,
            result.completion_tokens,
            result.cost_nano,
            names.UNRECORDED_RESULT_TTL_S if _tells_unrecorded(claimed) else "",
        ]
        if not await self._insist("finish", claimed, keys, args):
            raise StaleJobError(claimed.id, at="finish")

    async def sweep(self, limit: int = 500) -> Swept:
        """Return lost and due jobs to their lines; after a time without sweeps, lost ones get a lease more."""
        recovered, due = await self._run(
            "sweep", [names.LEASES, names.SNOOZED, names.SWEPT], [limit, int(LEASE_S * 1000)]
        )
        return Swept(recovered=int(recovered), due=int(due))

    async def expire_batches(self) -> int:
        """Call off batches whose time is over, a few at once; return how many."""
        return int(await self._run("expire_batches", [names.EXPIRING], [_EXPIRED_AT_ONCE]))

    async def ending_batches(self) -> dict[str, dict[str, str]]:
        """Return the batches whose last job ended and that are not yet marked as ended, with their fields."""
        found = {}
        with redis_away():
            for batch_id in [_text(member) for member in await self._redis.smembers(names.ENDING)]:
                fields = await self._redis.hgetall(names.batch(batch_id))
                found[batch_id] = {_text(key): _text(value) for key, value in fields.items()}
        return found

    async def end_batch(self, batch_id: str, *, state: str) -> bool:
        """Mark the batch as ended and tell who waits for it; False if another worker has done so."""
        keys = [names.batch(batch_id), names.ENDING, names.batch_rows(batch_id), names.BATCHES]
        keys += [names.batch_lines(batch_id), names.EXPIRING]
        return bool(await self._run("end_batch", keys, [batch_id, state, names.RESULT_TTL_S]))

    async def _insist(self, script: str, claimed: Claimed, keys: list[str], args: list[Any]) -> Any:
        # What a worker knows of its job, and nobody else: a paid reply, an attempt, an end.
        return await insist(
            lambda: self._run(script, keys, args), what=f"{script} of job {claimed.id}", events=self._events
        )

    async def _run(self, script: str, keys: list[str], args: list[Any]) -> Any:
        with redis_away():
            return await self._scripts[script](keys=keys, args=args)


def hints_of(reply: list[Any]) -> list[Hint]:
    """Read what a script released: ids and epochs in turn."""
    pairs = zip(reply[::2], reply[1::2], strict=True)
    return [Hint(job_id=_text(job_id), epoch=int(epoch)) for job_id, epoch in pairs]


def _kept(claimed: Claimed, result: JobResult) -> tuple[JobResult, int]:
    """Return what is kept of the job's end, and for how many seconds."""
    job = claimed.record.job
    if not job.do_not_record:
        return result, names.RESULT_TTL_S
    if job.webhook is None:
        return result, names.UNRECORDED_RESULT_TTL_S
    # The only place from which its webhook can tell the content.
    return KeptResult(**dict(result), metadata=job.metadata), CONTENT_KEPT_S


def _tells_unrecorded(claimed: Claimed) -> bool:
    job = claimed.record.job
    return job.do_not_record and job.tell == "stream"


def _lua_files() -> list[str]:
    return [path.name for path in resources.files("worker.queue").iterdir() if path.name.endswith(".lua")]


def _called_off(reason: bytes | str) -> CalledOff | None:
    return CalledOff(_text(reason)) if reason else None


def _called_off_running(reason: bytes | str) -> CalledOff | None:
    """Return why a job that runs is to end; where the cap is spent that is for its next reservation to say."""
    called_off = _called_off(reason)
    return None if called_off is CalledOff.OVER_BUDGET else called_off


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
