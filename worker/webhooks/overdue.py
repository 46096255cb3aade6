"""Ends the deliveries that waited too long for an endpoint which kept failing.

While its circuit is open an endpoint is sent one delivery at a time: without an end by age, a backlog
would wait there for years. Everything here blocks; errors of the database are SQLAlchemy's own.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Connection, Engine, exists, or_, select, update
from sqlmodel import col

from schemas.database import endpoint_locked
from schemas.tables import Delivery, WebhookEndpoint
from schemas.webhook import DeliveryState
from worker.webhooks.breaker import kept_failing
from worker.webhooks.decide import GIVE_UP_AFTER_S
from worker.webhooks.endpoints import Endpoint, deliveries_of, health_of, nobody_sends, pending, running

# Of one look: other writers, of SQLite all of them, wait for one transaction of so many rows.
_ENDPOINTS_A_LOOK = 10
STEP_ROWS = 500

_ERROR = f"not delivered within {GIVE_UP_AFTER_S // 3600} h: the endpoint kept failing"


class Overdue:
    """What is overdue in one database; any number of workers may end it at once."""

    def __init__(self, engine: Engine) -> None:
        """Keep the engine."""
        self._engine = engine

    def give_up(self, now: datetime) -> int:
        """End up to STEP_ROWS deliveries of each of a few endpoints as failed; return how many."""
        before = now - timedelta(seconds=GIVE_UP_AFTER_S)
        with self._engine.connect() as connection:
            endpoints = _endpoints(connection, before=before, now=now)
        return sum(self._give_up(endpoint, before=before, now=now) for endpoint in endpoints)

    def _give_up(self, endpoint: Endpoint, *, before: datetime, now: datetime) -> int:
        with endpoint_locked(self._engine, *endpoint) as connection:
            health = health_of(connection, endpoint)
            sending = running(connection, endpoint, now=now)
            if not kept_failing(health, running=sending, since=before, now=now):
                return 0
            ended = 0
            for overdue in _overdue(before):
                some = select(col(Delivery.id)).where(*deliveries_of(endpoint), *overdue).limit(STEP_ROWS - ended)
                ended += connection.execute(
                    update(Delivery)
                    # Once more, whether it is: a replay takes no lock of the endpoint.
                    .where(col(Delivery.id).in_(some), *overdue, nobody_sends(now))
                    .values(state=DeliveryState.FAILED.value, last_error=_ERROR)
                ).rowcount
            return ended


def _endpoints(connection: Connection, *, before: datetime, now: datetime) -> list[Endpoint]:
    """Return some endpoints that failed all the time and hold what is overdue."""
    of_it = col(Delivery.workspace) == col(WebhookEndpoint.workspace), col(Delivery.url) == col(WebhookEndpoint.url)
    statement = (
        select(col(WebhookEndpoint.workspace), col(WebhookEndpoint.url))
        .where(
            col(WebhookEndpoint.open_until) > now,
            col(WebhookEndpoint.failing_since) <= before,
            or_(*(exists().where(*of_it, *overdue) for overdue in _overdue(before))),
        )
        .limit(_ENDPOINTS_A_LOOK)
    )
    return [Endpoint(*row) for row in connection.execute(statement)]


def _overdue(before: datetime) -> tuple[tuple[ColumnElement[bool], ...], ...]:
    """Return the conditions of waiting since then; a delivery meets one of them. Each is a range of the index."""
    never_replayed = col(Delivery.replayed_at).is_(None), col(Delivery.created_at) <= before
    return (pending(), *never_replayed), (pending(), col(Delivery.replayed_at) <= before)
