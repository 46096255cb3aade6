"""The sweeper: frees dead workers' jobs, wakes snoozed ones, calls off batches whose time is over, and ends batches.

Runs in every worker process; what it does is atomic or idempotent, so many may do it at once.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

from schemas.batch import BatchStatus, end_state
from worker.errors import RedisAway
from worker.events import BatchEnded, Events, JobsRecovered, ServiceFault
from worker.queue.queue import JobQueue
from worker.store.base import Store, StoreAway

SWEEP_EVERY_S = 0.5
_AWAY_IN_A_ROW = 2

SendDueWebhooks = Callable[[], Awaitable[None]]


class Sweeper:
    """The sweep loop of one process."""

    def __init__(
        self,
        *,
        queue: JobQueue,
        store: Store,
        free_lost_calls: Callable[[], Awaitable[int]],
        send_due_webhooks: SendDueWebhooks,
        wake: Callable[[], None],
        events: Events,
    ) -> None:
        """Take the parts; `free_lost_calls` ends what dead workers reserved, `wake` tells admission to look."""
        self._queue = queue
        self._store = store
        self._free_lost_calls = free_lost_calls
        self._send_due_webhooks = send_due_webhooks
        self._wake = wake
        self._events = events
        # How often in a row each batch that is to end could not.
        self._faults: Counter[str] = Counter()

    async def run_forever(self) -> None:
        """Sweep until cancelled; what fails is told and tried again."""
        # Apart: a database that hangs must not keep the jobs of dead workers, nor batches that do not end the webhooks.
        async with asyncio.TaskGroup() as loops:
            loops.create_task(self._repeat(self._sweep))
            loops.create_task(self._repeat(self._end_batches))
            loops.create_task(self._repeat(self._send_due_webhooks))

    async def _repeat(self, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await work()
            except Exception as exc:  # noqa: BLE001 - a loop that ended in silence would free nobody's jobs
                self._tell("sweep", exc)
            await asyncio.sleep(SWEEP_EVERY_S)

    async def _sweep(self) -> None:
        swept = await self._queue.sweep()
        if swept.recovered:
            self._events.emit(JobsRecovered(count=swept.recovered))
        freed = await self._free_lost_calls()
        expired = await self._queue.expire_batches()
        if swept.recovered or swept.due or freed or expired:
            self._wake()

    async def _end_batches(self) -> None:
        ending = await self._queue.ending_batches()
        faults = {batch_id: self._faults[batch_id] for batch_id in ending}
        # Those that were never refused come first: a refusal of what one batch brings looks at times like a
        # service that is away, and of two of these in a row we believe it, to wait for it no longer.
        away = 0
        for batch_id in sorted(ending, key=faults.__getitem__):
            try:
                await self._end_batch(batch_id, ending[batch_id])
                away = 0
                del faults[batch_id]
            except Exception as exc:  # noqa: BLE001 - it is tried again, and the others must end
                self._tell(f"end of batch '{batch_id}'", exc)
                faults[batch_id] += 1
                away = away + 1 if isinstance(exc, (RedisAway, StoreAway)) else 0
                if away == _AWAY_IN_A_ROW:
                    break
        self._faults = Counter(faults)

    async def _end_batch(self, batch_id: str, fields: dict[str, str]) -> None:
        status = BatchStatus.from_fields(batch_id, {**fields, "state": end_state(fields)})
        # SQL first: a crash in between leaves the batch in aq:ending, and the row makes the
        # second time a no-op.
        await self._store.end_batch(status)
        if not await self._queue.end_batch(status.batch_id, state=status.state.value):
            return
        counts = {name.value: count for name, count in status.counts.items()}
        self._events.emit(BatchEnded(status.batch_id, status.workspace, state=status.state.value, counts=counts))

    def _tell(self, what: str, exc: Exception) -> None:
        match exc:
            case RedisAway():
                fault = ServiceFault(part="redis", error=f"{what}: {exc}")
            case StoreAway():
                fault = ServiceFault(part="sql", error=f"{what}: {exc}")
            case _:
                fault = ServiceFault(part="sweeper", error=f"{what}: {type(exc).__name__}: {exc}")
        self._events.emit(fault)
