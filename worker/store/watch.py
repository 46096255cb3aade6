"""Notices that the database is away, so that this process asks for little work until it is back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from schemas.batch import BatchStatus
from schemas.job import JobRecord
from schemas.result import JobResult
from worker.store.base import JobContext, RowHeld, Settlement, Store, StoreAway

# In a row, with no success in between: a database may refuse one job's row as if it were away.
AWAY_AFTER = 3


class WatchedStore:
    """A store, and whether it seems to be away."""

    def __init__(self, store: Store) -> None:
        """Watch this store, which is there until it fails."""
        self._store = store
        self._failed = 0

    @property
    def is_away(self) -> bool:
        """Return whether nothing has succeeded since it failed AWAY_AFTER times."""
        return self._failed >= AWAY_AFTER

    async def context(self, record: JobRecord) -> JobContext:
        """Read what the job needs."""
        with self._watching():
            return await self._store.context(record)

    async def settle(self, settlement: Settlement) -> JobResult:
        """Write the end of a job once; return the result that stands."""
        with self._watching():
            return await self._store.settle(settlement)

    async def end_batch(self, status: BatchStatus) -> None:
        """Write the end of a batch, and the delivery of its webhook, once."""
        with self._watching():
            await self._store.end_batch(status)

    @contextmanager
    def _watching(self) -> Iterator[None]:
        try:
            yield
        except RowHeld:
            # The database answered.
            raise
        except StoreAway:
            self._failed += 1
            raise
        self._failed = 0
