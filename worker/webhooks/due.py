"""Keeps deliveries going: ends those that are overdue, and hints those that are due.

After each attempt the next ones of its endpoint are hinted too.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from sqlalchemy.exc import SQLAlchemyError

from worker.errors import RedisAway
from worker.events import Events, ServiceFault
from worker.webhooks.backlog import Backlog
from worker.webhooks.endpoints import Endpoint
from worker.webhooks.overdue import Overdue
from worker.webhooks.sql_threads import SqlThreads

LOOK_EVERY_S = 2.0
_AT_ONCE = 100

Attempt = Callable[[str], Awaitable[Endpoint | None]]
"""Sends a delivery once, if it may be sent now, and returns where to (deliver.py)."""

Hint = Callable[[list[str]], Awaitable[None]]
"""Tells some worker to attempt these deliveries soon; raises RedisAway."""


class DueWebhooks:
    """The deliveries of one process. A hint that gets lost, or comes twice, does no harm."""

    def __init__(
        self,
        backlog: Backlog,
        overdue: Overdue,
        *,
        threads: SqlThreads,
        attempt: Attempt,
        hint: Hint,
        events: Events,
    ) -> None:
        """Keep the parts."""
        self._backlog = backlog
        self._overdue = overdue
        self._threads = threads
        self._attempt = attempt
        self._hint = hint
        self._events = events
        self._looked_at: datetime | None = None

    async def look(self) -> None:
        """End what is overdue and hint what is due, if the last look was LOOK_EVERY_S ago; raises RedisAway."""
        now = datetime.now(UTC)
        if self._looked_at is not None and 0 <= (now - self._looked_at).total_seconds() < LOOK_EVERY_S:
            return
        self._looked_at = now
        try:
            await self._threads.run(self._overdue.give_up, now)
            due = await self._threads.run(self._backlog.due, now, limit=_AT_ONCE)
        except SQLAlchemyError as exc:
            self._events.emit(ServiceFault(part="sql", error=f"deliveries: {type(exc).__name__}"))
            return
        if due:
            await self._hint(due)

    async def deliver(self, delivery_id: str) -> None:
        """Attempt the delivery, then hint more of its endpoint; without a database it stays due.

        So a receiver is sent one event after the other, as fast as it takes them, and others' hints,
        which stand in the queue already, come before its next.
        """
        try:
            endpoint = await self._attempt(delivery_id)
            if endpoint is None:
                return
            due = await self._threads.run(self._backlog.due_of, endpoint, datetime.now(UTC))
            if due:
                await self._hint(due)
        except SQLAlchemyError as exc:
            self._events.emit(ServiceFault(part="sql", error=f"delivery {delivery_id}: {type(exc).__name__}"))
        except RedisAway as exc:
            self._events.emit(ServiceFault(part="redis", error=f"delivery {delivery_id}: {exc}"))
