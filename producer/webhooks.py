"""Looks at webhook deliveries and endpoints in SQL, and repairs them: replay, enable, rotate."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Engine, delete, or_, update
from sqlmodel import Session, col, select

from schemas import signing_secrets
from schemas.database import endpoint_locked
from schemas.errors import InputError
from schemas.tables import Delivery, WebhookEndpoint
from schemas.webhook import DeliveryState

_IDS_A_QUERY = 500


class Webhooks:
    """The deliveries, endpoints and secrets of one database; its tables must exist."""

    def __init__(self, engine: Engine) -> None:
        """Use this engine."""
        self._engine = engine

    def deliveries(self, *, batch_id: str | None, state: str | None, limit: int) -> list[Delivery]:
        """Return the newest deliveries, of one batch or in one state if they are named."""
        query = select(Delivery).order_by(col(Delivery.created_at).desc()).limit(limit)
        if batch_id is not None:
            query = query.where(Delivery.batch_id == batch_id)
        if state is not None:
            query = query.where(Delivery.state == state)
        with Session(self._engine) as session:
            return list(session.exec(query))

    def delivery(self, delivery_id: str) -> Delivery:
        """Return one delivery; InputError if there is none of this id."""
        with Session(self._engine) as session:
            found = session.get(Delivery, delivery_id)
        if found is None:
            raise _unknown(delivery_id)
        return found

    def endpoints(self) -> list[WebhookEndpoint]:
        """Return the endpoints that something is held against, by workspace and URL."""
        query = select(WebhookEndpoint).order_by(col(WebhookEndpoint.workspace), col(WebhookEndpoint.url))
        with Session(self._engine) as session:
            return list(session.exec(query))

    def endpoint(self, workspace: str, url: str) -> WebhookEndpoint | None:
        """Return what is held against an endpoint, None if it is healthy."""
        with Session(self._engine) as session:
            return session.get(WebhookEndpoint, (workspace, url))

    def enable(self, workspace: str, url: str) -> WebhookEndpoint:
        """Hold nothing against the endpoint any more; return what it was. InputError if it was nothing."""
        is_it = col(WebhookEndpoint.workspace) == workspace, col(WebhookEndpoint.url) == url
        with endpoint_locked(self._engine, workspace, url) as connection:
            row = (
                connection.execute(delete(WebhookEndpoint).where(*is_it).returning(*_COLUMNS)).mappings().one_or_none()
            )
        if row is None:
            raise InputError(
                f"nothing is held against the endpoint {url} of workspace '{workspace}'",
                mend="`assistq webhooks endpoints` lists those that fail or are disabled",
            )
        return WebhookEndpoint(**row)

    def replay(self, ids: Sequence[str], *, now: datetime) -> list[str]:
        """Make these deliveries due now, whatever came of them; InputError, and nothing is done, if one is unknown.

        Returns those that are: not what is being sent at this moment.
        """
        for delivery_id in ids:
            self.delivery(delivery_id)
        replayed: list[str] = []
        for first in range(0, len(ids), _IDS_A_QUERY):
            replayed += self._replay([col(Delivery.id).in_(ids[first : first + _IDS_A_QUERY])], now)
        return replayed

    def replay_all(self, *, batch_id: str | None, failed: bool, now: datetime) -> list[str]:
        """Make those of the batch due now, or those that failed, or those of it that failed; returns their ids."""
        those: list[Any] = []
        if batch_id is not None:
            those.append(col(Delivery.batch_id) == batch_id)
        if failed:
            those.append(col(Delivery.state) == DeliveryState.FAILED)
        return self._replay(those, now)

    def disabled_among(self, delivery_ids: Iterable[str]) -> list[WebhookEndpoint]:
        """Return the disabled endpoints that any of these deliveries go to."""
        disabled = {(each.workspace, each.url): each for each in self.endpoints() if each.disabled_at is not None}
        if not disabled:
            return []
        ids, found = list(delivery_ids), set()
        with Session(self._engine) as session:
            for first in range(0, len(ids), _IDS_A_QUERY):
                some = col(Delivery.id).in_(ids[first : first + _IDS_A_QUERY])
                found |= set(session.exec(select(Delivery.workspace, Delivery.url).where(some).distinct()))
        return [disabled[key] for key in sorted(found & disabled.keys())]

    def rotate(self, workspace: str, *, now: datetime, overlap: timedelta) -> str:
        """Give the workspace a new secret and return it; the one before signs too until the overlap has passed."""
        with Session(self._engine) as session:
            return signing_secrets.rotate(session, workspace, now=now, overlap=overlap)

    def _replay(self, those: Sequence[Any], now: datetime) -> list[str]:
        # A worker that is sending it would write its end over ours.
        nobody = or_(col(Delivery.claimed_until).is_(None), col(Delivery.claimed_until) <= now)
        statement = (
            update(Delivery)
            .where(*those, nobody)
            .values(
                state=DeliveryState.PENDING.value,
                next_attempt_at=now,
                claimed_until=None,
                delivered_at=None,
                attempts_at_replay=col(Delivery.attempts),
                replayed_at=now,
            )
            .returning(col(Delivery.id))
        )
        with self._engine.begin() as connection:
            return list(connection.execute(statement).scalars())


_COLUMNS = tuple(col(getattr(WebhookEndpoint, name)) for name in WebhookEndpoint.model_fields)


def _unknown(delivery_id: str) -> InputError:
    return InputError(f"delivery '{delivery_id}' is not known", mend="`assistq webhooks list` lists them")
