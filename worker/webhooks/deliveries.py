"""Deliveries and signing secrets in SQL.

Everything here blocks; a caller on an event loop runs it in a thread. Errors of the
database are SQLAlchemy's own and pass through: the delivery stays due and is sent later.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, assert_never

from sqlalchemy import Engine, update
from sqlmodel import Session, col, select

from schemas.database import signing_secret
from schemas.tables import Delivery
from schemas.webhook import DeliveryState, WebhookEvent
from worker.webhooks.decide import Answer, Decision, Delivered, GaveUp, RetryAt

# Longer than a POST may take, so that a lease ends only under a worker that died.
LEASE_S = 60.0


@dataclass(frozen=True, slots=True)
class Claimed:
    """A delivery that is this worker's to send until its lease ends.

    `attempts` includes the coming one. It grows with each claim, so it tells a worker whose
    lease ended from the one that took over.
    """

    id: str
    workspace: str
    event_type: str
    batch_id: str | None
    job_id: str | None
    url: str
    body: str
    unrecorded: bool
    attempts: int


class Deliveries:
    """The deliveries of one database, safe for any number of workers at once."""

    def __init__(self, engine: Engine, *, lease_s: float = LEASE_S) -> None:
        """Keep the engine; a claimed delivery is nobody else's for `lease_s` seconds."""
        self._engine = engine
        self._lease = timedelta(seconds=lease_s)

    def due(self, now: datetime, limit: int) -> list[str]:
        """Return the ids of up to `limit` deliveries whose time has come, the longest due first."""
        statement = (
            select(Delivery.id)
            .where(col(Delivery.state) == DeliveryState.PENDING, col(Delivery.next_attempt_at) <= now)
            .order_by(col(Delivery.next_attempt_at))
            .limit(limit)
        )
        with Session(self._engine) as session:
            return list(session.exec(statement))

    def claim(self, delivery_id: str, *, now: datetime) -> Claimed | None:
        """Take the delivery until the lease ends; None if it is not due, ended, or another worker's.

        One conditional UPDATE: of two workers that claim at once, the second finds
        `next_attempt_at` already ahead of it.
        """
        statement = (
            update(Delivery)
            .where(
                col(Delivery.id) == delivery_id,
                col(Delivery.state) == DeliveryState.PENDING,
                col(Delivery.next_attempt_at) <= now,
            )
            .values(attempts=col(Delivery.attempts) + 1, next_attempt_at=now + self._lease)
            .returning(
                col(Delivery.id),
                col(Delivery.workspace),
                col(Delivery.event_type),
                col(Delivery.batch_id),
                col(Delivery.job_id),
                col(Delivery.url),
                col(Delivery.body),
                col(Delivery.unrecorded),
                col(Delivery.attempts),
            )
        )
        with self._engine.begin() as connection:
            row = connection.execute(statement).mappings().one_or_none()
        return None if row is None else Claimed(**row)

    def record(self, claimed: Claimed, decision: Decision, *, answer: Answer, now: datetime) -> bool:
        """Write what came of the attempt; False if the delivery was no longer this worker's."""
        values: dict[str, Any] = {"last_status": answer.status, "last_error": answer.error}
        match decision:
            case Delivered():
                values |= {"state": DeliveryState.DELIVERED.value, "delivered_at": now}
            case RetryAt(at=at):
                values |= {"next_attempt_at": at}
            case GaveUp():
                values |= {"state": DeliveryState.FAILED.value}
            case _:
                assert_never(decision)
        statement = (
            update(Delivery)
            .where(
                col(Delivery.id) == claimed.id,
                col(Delivery.attempts) == claimed.attempts,
                col(Delivery.state) == DeliveryState.PENDING,
            )
            .values(**values)
        )
        with self._engine.begin() as connection:
            return connection.execute(statement).rowcount == 1

    def postpone(self, claimed: Claimed, *, until: datetime) -> bool:
        """Give the delivery back as if it had not been claimed; False if it was no longer this worker's."""
        statement = (
            update(Delivery)
            .where(
                col(Delivery.id) == claimed.id,
                col(Delivery.attempts) == claimed.attempts,
                col(Delivery.state) == DeliveryState.PENDING,
            )
            .values(attempts=col(Delivery.attempts) - 1, next_attempt_at=until)
        )
        with self._engine.begin() as connection:
            return connection.execute(statement).rowcount == 1

    def secret_of(self, workspace: str) -> str:
        """Return the workspace's signing secret; it is made if there is none."""
        with Session(self._engine) as session:
            secret = signing_secret(session, workspace)
            session.commit()
            return secret


def new_delivery(
    *,
    id: str,  # noqa: A002 - the column's name
    workspace: str,
    event_type: str,
    url: str,
    data: dict[str, Any],
    now: datetime,
    batch_id: str | None = None,
    job_id: str | None = None,
    unrecorded: bool = False,
) -> Delivery:
    """Return the row of a delivery that is due at once; its body is fixed here for all attempts.

    An `unrecorded` one's has no content: worker/webhooks/unrecorded.py puts that in when it is sent.

    The caller adds it in the transaction of what it tells about. The row's id is `id`, or a
    hash of it where it holds a full stop.
    """
    event = WebhookEvent(type=event_type, timestamp=now, data=data)
    return Delivery(
        id=_signable(id),
        workspace=workspace,
        event_type=event_type,
        batch_id=batch_id,
        job_id=job_id,
        url=url,
        body=event.model_dump_json(),
        unrecorded=unrecorded,
        state=DeliveryState.PENDING.value,
        next_attempt_at=now,
        created_at=now,
    )


def _signable(id_: str) -> str:
    """Return an id without a full stop, the same for the same id.

    What is signed is `id.timestamp.body`, and an id may hold a batch's name, which users
    choose: with a full stop in it, one signature could stand for two messages.
    """
    return id_ if "." not in id_ else "msg_" + hashlib.sha256(id_.encode()).hexdigest()[:32]
