"""The webhook deliveries and endpoints of one workspace."""

from __future__ import annotations

from sqlalchemy import Engine
from sqlmodel import Session, col, select

from producer.gateway.dialects.own.pages import Place, after
from schemas.tables import Delivery, WebhookEndpoint
from schemas.webhook import DeliveryState


class WebhookRecords:
    """Reads one database."""

    def __init__(self, engine: Engine, workspace: str) -> None:
        """Read what is of this workspace."""
        self._engine = engine
        self._workspace = workspace

    def delivery(self, delivery_id: str) -> Delivery | None:
        """Return the delivery, None if the workspace has none of this id."""
        with Session(self._engine) as session:
            row = session.get(Delivery, delivery_id)
        return row if row is not None and row.workspace == self._workspace else None

    def deliveries(
        self, *, state: DeliveryState | None, batch_id: str | None, place: Place | None, limit: int
    ) -> list[Delivery]:
        """Return deliveries after the place, the youngest first."""
        query = (
            select(Delivery)
            .where(Delivery.workspace == self._workspace, after(place, Delivery.created_at, Delivery.id))
            .order_by(col(Delivery.created_at).desc(), col(Delivery.id).desc())
            .limit(limit)
        )
        if state is not None:
            query = query.where(Delivery.state == state.value)
        if batch_id is not None:
            query = query.where(Delivery.batch_id == batch_id)
        with Session(self._engine) as session:
            return list(session.exec(query))

    def endpoints(self, *, after_url: str, limit: int) -> list[WebhookEndpoint]:
        """Return the endpoints that something is held against, by URL, those behind this one."""
        query = (
            select(WebhookEndpoint)
            .where(WebhookEndpoint.workspace == self._workspace, col(WebhookEndpoint.url) > after_url)
            .order_by(col(WebhookEndpoint.url))
            .limit(limit)
        )
        with Session(self._engine) as session:
            return list(session.exec(query))
