"""Deliveries and signing secrets in SQL.

Everything here blocks; a caller on an event loop runs it in a thread. Errors of the
database are SQLAlchemy's own and pass through: the delivery stays due and is sent later.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, assert_never

from sqlalchemy import Connection, Engine, RowMapping, update
from sqlmodel import Session, col, select

from schemas.database import endpoint_locked
from schemas.signing_secrets import signing_secrets
from schemas.tables import Delivery
from schemas.webhook import DeliveryState
from worker.webhooks.breaker import Admission, Health, admit, after_failure, after_gone, after_success
from worker.webhooks.decide import Answer, Decision, Delivered, GaveUp, Gone, RetryAt
from worker.webhooks.endpoints import Endpoint, end_pending, health_of, keep, running

# Longer than a POST may take, so that a lease ends only under a worker that died.
LEASE_S = 60.0


@dataclass(frozen=True, slots=True)
class Claimed:
    """A delivery that is this worker's to send until its lease ends.

    `attempts` includes the coming one. It grows with each claim, so it tells a worker whose
    lease ended from the one that took over. `probe` if it was let through an open circuit.
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
    attempts_at_replay: int = 0
    probe: bool = False

    @property
    def endpoint(self) -> Endpoint:
        """Return where it goes."""
        return Endpoint(self.workspace, self.url)

    @property
    def attempts_on_schedule(self) -> int:
        """Return how many attempts the schedule counts: those since it was last replayed, the coming one included."""
        return self.attempts - self.attempts_at_replay


class Deliveries:
    """The deliveries of one database, safe for any number of workers at once."""

    def __init__(self, engine: Engine, *, lease_s: float = LEASE_S) -> None:
        """Keep the engine; a claimed delivery is nobody else's for `lease_s` seconds."""
        self._engine = engine
        self._lease = timedelta(seconds=lease_s)

    def claim(self, delivery_id: str, *, now: datetime) -> Claimed | None:
        """Take the delivery until the lease ends; None if it is not due, another worker's, or may not be sent now.

        Of two workers that claim at once, the second finds `next_attempt_at` already ahead of it. Under the
        endpoint's lock nobody else begins to send there, so that the bound holds over all workers. A claim that
        finds its endpoint disabled ends what waits for it.
        """
        endpoint = self._endpoint_of_due(delivery_id, now)
        if endpoint is None:
            return None
        with endpoint_locked(self._engine, *endpoint) as connection:
            health = health_of(connection, endpoint)
            admission = admit(health, running=running(connection, endpoint, now=now), now=now)
            if admission is Admission.REFUSE:
                end_pending(connection, endpoint, health, now=now)
            if admission in {Admission.REFUSE, Admission.WAIT}:
                return None
            row = self._take(connection, delivery_id, now)
            if row is None:
                return None
            probe = admission is Admission.PROBE
            if probe:
                keep(connection, endpoint, replace(health, open_until=now + self._lease), was=health)
        return Claimed(**row, probe=probe)

    def record(self, claimed: Claimed, decision: Decision, *, answer: Answer, now: datetime) -> bool:
        """Write what came of the attempt, for the delivery and its endpoint.

        False, and nothing is written, if the delivery was no longer this worker's.
        """
        values: dict[str, Any] = {"last_status": answer.status, "last_error": answer.error, "claimed_until": None}
        match decision:
            case Delivered():
                values |= {"state": DeliveryState.DELIVERED.value, "delivered_at": now}
            case RetryAt(at=at):
                values |= {"next_attempt_at": at}
            case GaveUp() | Gone():
                values |= {"state": DeliveryState.FAILED.value}
            case _:
                assert_never(decision)
        statement = update(Delivery).where(*_is_ours(claimed)).values(**values)
        with endpoint_locked(self._engine, *claimed.endpoint) as connection:
            if connection.execute(statement).rowcount != 1:
                return False
            was = health_of(connection, claimed.endpoint)
            health = _after(was, decision, claimed=claimed, answer=answer, now=now)
            keep(connection, claimed.endpoint, health, was=was)
            if health.disabled_at is not None:
                end_pending(connection, claimed.endpoint, health, now=now)
        return True

    def postpone(self, claimed: Claimed, *, until: datetime) -> bool:
        """Give the delivery back as if it had not been claimed; False if it was no longer this worker's."""
        statement = (
            update(Delivery)
            .where(*_is_ours(claimed))
            .values(attempts=col(Delivery.attempts) - 1, next_attempt_at=until, claimed_until=None)
        )
        with self._engine.begin() as connection:
            return connection.execute(statement).rowcount == 1

    def secrets_of(self, workspace: str, *, now: datetime) -> list[str]:
        """Return the secrets that sign for the workspace now, its own first; that one is made if there is none."""
        with Session(self._engine) as session:
            secrets = signing_secrets(session, workspace, now=now)
            session.commit()
            return secrets

    def _endpoint_of_due(self, delivery_id: str, now: datetime) -> Endpoint | None:
        # In a transaction of its own: SQLite gives no write lock to one that has read what is old by then.
        statement = select(Delivery.workspace, Delivery.url).where(*_is_due(delivery_id, now))
        with self._engine.connect() as connection:
            row = connection.execute(statement).one_or_none()
        return None if row is None else Endpoint(*row)

    def _take(self, connection: Connection, delivery_id: str, now: datetime) -> RowMapping | None:
        lease_ends_at = now + self._lease
        statement = (
            update(Delivery)
            .where(*_is_due(delivery_id, now))
            .values(attempts=col(Delivery.attempts) + 1, next_attempt_at=lease_ends_at, claimed_until=lease_ends_at)
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
                col(Delivery.attempts_at_replay),
            )
        )
        return connection.execute(statement).mappings().one_or_none()


def _is_ours(claimed: Claimed) -> tuple[Any, ...]:
    return (
        col(Delivery.id) == claimed.id,
        col(Delivery.attempts) == claimed.attempts,
        col(Delivery.state) == DeliveryState.PENDING,
    )


def _is_due(delivery_id: str, now: datetime) -> tuple[Any, ...]:
    return (
        col(Delivery.id) == delivery_id,
        col(Delivery.state) == DeliveryState.PENDING,
        col(Delivery.next_attempt_at) <= now,
    )


def _after(was: Health, decision: Decision, *, claimed: Claimed, answer: Answer, now: datetime) -> Health:
    match decision:
        case Delivered():
            return after_success(was)
        case RetryAt() | GaveUp():
            return after_failure(was, probe=claimed.probe, now=now)
        case Gone():
            return after_gone(was, reason=answer.error or f"HTTP {answer.status}", now=now)
        case _:
            assert_never(decision)
