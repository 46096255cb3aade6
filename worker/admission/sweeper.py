"""The sweeper: frees dead workers' jobs, wakes snoozed ones, calls off batches whose time is over, and ends batches.

Runs in every worker process; what it does is atomic or idempotent, so many may do it at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from schemas.batch import BatchStatus, end_state
from worker.errors import RedisAway
from worker.events import BatchEnded, Events, JobsRecovered, ServiceFault
from worker.queue.queue import JobQueue
from worker.store.base import Store, StoreAway

SWEEP_EVERY_S = 0.5

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

    async def run_forever(self) -> None:
        """Sweep until cancelled; what fails is told and tried again."""
        # Apart: a database that hangs must not keep the jobs of dead workers.
        async with asyncio.TaskGroup() as loops:
            loops.create_task(self._repeat(self._sweep))
            loops.create_task(self._repeat(self._end_batches))

    async def _repeat(self, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await work()
            except RedisAway as exc:
                self._events.emit(ServiceFault(part="redis", error=f"sweep: {exc}"))
            except StoreAway as exc:
                self._events.emit(ServiceFault(part="sql", error=f"sweep: {exc}"))
            except Exception as exc:  # noqa: BLE001 - a loop that ended in silence would free nobody's jobs
                self._events.emit(ServiceFault(part="sweeper", error=f"{type(exc).__name__}: {exc}"))
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
        for batch_id, fields in (await self._queue.ending_batches()).items():
            await self._end_batch(BatchStatus.from_fields(batch_id, {**fields, "state": end_state(fields)}))
        await self._send_due_webhooks()

    async def _end_batch(self, status: BatchStatus) -> None:
        # SQL first: a crash in between leaves the batch in aq:ending, and the row makes the
        # second time a no-op.
        await self._store.end_batch(status)
        if not await self._queue.end_batch(status.batch_id, state=status.state.value):
            return
        counts = {name.value: count for name, count in status.counts.items()}
        self._events.emit(BatchEnded(status.batch_id, status.workspace, state=status.state.value, counts=counts))
