"""The health of endpoints in SQL. A healthy one has no row.

Everything takes the connection of a transaction that holds the endpoint's lock
(schemas.database.endpoint_locked): what is read stays true until what follows from it is written.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection, delete, func, insert, literal_column, or_, select, update
from sqlmodel import col

from schemas.tables import Delivery, WebhookEndpoint
from schemas.webhook import DeliveryState
from worker.webhooks.breaker import HEALTHY, Health

_HEALTH = (
    col(WebhookEndpoint.failures),
    col(WebhookEndpoint.failing_since),
    col(WebhookEndpoint.open_until),
    col(WebhookEndpoint.disabled_at),
    col(WebhookEndpoint.disabled_reason),
)


class Endpoint(NamedTuple):
    """A receiver of one workspace."""

    workspace: str
    url: str


def health_of(connection: Connection, endpoint: Endpoint) -> Health:
    """Return what is held against the endpoint."""
    row = connection.execute(select(*_HEALTH).where(*_is(endpoint))).one_or_none()
    return HEALTHY if row is None else Health(*row)


def keep(connection: Connection, endpoint: Endpoint, health: Health, *, was: Health) -> None:
    """Write the endpoint's health, where it is no longer what it `was`."""
    if health == was:
        return
    if health == HEALTHY:
        connection.execute(delete(WebhookEndpoint).where(*_is(endpoint)))
    elif was == HEALTHY:
        connection.execute(insert(WebhookEndpoint).values(**endpoint._asdict(), **asdict(health)))
    else:
        connection.execute(update(WebhookEndpoint).where(*_is(endpoint)).values(**asdict(health)))


def running(connection: Connection, endpoint: Endpoint, *, now: datetime) -> int:
    """Return how many workers are sending to the endpoint, as far as their leases say."""
    claimed = (
        select(func.count()).select_from(Delivery).where(*deliveries_of(endpoint), col(Delivery.claimed_until) > now)
    )
    return int(connection.execute(claimed).scalar_one())


def end_pending(connection: Connection, endpoint: Endpoint, health: Health, *, now: datetime) -> None:
    """End all deliveries to the disabled endpoint that nobody is sending."""
    error = (
        f"the endpoint is disabled since {health.disabled_at:%Y-%m-%d %H:%M} UTC ({health.disabled_reason}): "
        f"`assistq webhooks enable` enables it, then `assistq webhooks replay` sends what has failed"
    )
    connection.execute(
        update(Delivery)
        .where(*deliveries_of(endpoint), pending(), nobody_sends(now))
        .values(state=DeliveryState.FAILED.value, last_error=error)
    )


def deliveries_of(endpoint: Endpoint) -> tuple[ColumnElement[bool], ...]:
    """Return the condition of being sent to this endpoint."""
    return col(Delivery.workspace) == endpoint.workspace, col(Delivery.url) == endpoint.url


def pending() -> ColumnElement[bool]:
    """Return the condition of being pending, in the words of the index (schemas/tables.py)."""
    return col(Delivery.state) == literal_column(f"'{DeliveryState.PENDING.value}'")


def nobody_sends(now: datetime) -> ColumnElement[bool]:
    """Return the condition of being sent by no worker."""
    return or_(col(Delivery.claimed_until).is_(None), col(Delivery.claimed_until) <= now)


def _is(endpoint: Endpoint) -> tuple[ColumnElement[bool], ...]:
    return col(WebhookEndpoint.workspace) == endpoint.workspace, col(WebhookEndpoint.url) == endpoint.url
