"""Lets a run come to its end: everything that was acknowledged, every webhook, all that should leave Redis."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import redis
from sqlalchemy import func, update
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import Session, SQLModel, col, select

from ops.faults.gather import left_in
from ops.faults.load import recorded
from ops.faults.system import System
from schemas.tables import Batch, Delivery, Job
from schemas.webhook import DeliveryState

# Long for any job that waits out its back-off, or a delivery whose worker died with it.
JOBS_WITHIN_S = 240.0
REST_WITHIN_S = 180.0
_LOOK_EVERY_S = 1.0
# The second wait of a delivery is of minutes, and so may be that of an endpoint that failed: these are let go at
# once. Sooner times may be those of a worker that is sending.
_AT_ONCE_FROM_S = 90.0
_ENDPOINTS = "webhook_endpoints"

Tell = Callable[[str], None]


def settle(system: System, *, tell: Tell) -> list[str]:
    """Wait for the end of all; return what has not come to its end in time, in words."""
    tell("the producer ends")
    if not _within(system, lambda: system.producer.finished, JOBS_WITHIN_S):
        return [f"the producer has not enqueued all that it wanted within {JOBS_WITHIN_S:g} s"]
    orders = list(recorded(system.stage))
    jobs, batches = sum(len(order.jobs) for order in orders), sum(order.is_batch for order in orders)

    def all_ended() -> bool:
        ended = _ended(system)
        tell(f"{ended[0]} of {jobs} jobs, {ended[1]} of {batches} batches")
        return ended[0] >= jobs and ended[1] >= batches

    unsettled = []
    if not _within(system, all_ended, JOBS_WITHIN_S):
        ended = _ended(system)
        unsettled.append(
            f"after {JOBS_WITHIN_S:g} s {jobs - ended[0]} jobs and {batches - ended[1]} batches have not ended in SQL"
        )
    tell("webhooks, reservations")
    if not _within(system, lambda: _all_told(system) and not _left(system), REST_WITHIN_S):
        unsettled.append(f"webhooks are due, or keys are left in Redis, {REST_WITHIN_S:g} s after the last end")
    return unsettled


def _within(system: System, condition: Callable[[], bool], within_s: float) -> bool:
    deadline_s = time.monotonic() + within_s
    look_at_s = 0.0
    while True:
        if time.monotonic() >= look_at_s:
            if condition():
                return True
            look_at_s = time.monotonic() + _LOOK_EVERY_S
        if time.monotonic() > deadline_s:
            return False
        system.tick()
        system.pause()


def _ended(system: System) -> tuple[int, int]:
    try:
        with Session(system.engine) as session:
            jobs = session.exec(select(func.count()).select_from(Job)).one()
            return jobs, session.exec(select(func.count()).select_from(Batch)).one()
    except SQLAlchemyError:
        return 0, 0


def _all_told(system: System) -> bool:
    """Return whether no delivery is pending; what would wait for minutes is made due now."""
    try:
        with Session(system.engine) as session:
            now = datetime.now(UTC)
            pending = col(Delivery.state) == DeliveryState.PENDING
            late = now + timedelta(seconds=_AT_ONCE_FROM_S)
            waits = update(Delivery).where(pending, col(Delivery.next_attempt_at) > late)
            session.connection().execute(waits.values(next_attempt_at=now))
            # A circuit breaker, where the product has one.
            if (endpoints := SQLModel.metadata.tables.get(_ENDPOINTS)) is not None:
                is_open = update(endpoints).where(endpoints.c.open_until > late)
                session.connection().execute(is_open.values(open_until=now))
            session.commit()
            return session.exec(select(func.count()).select_from(Delivery).where(pending)).one() == 0
    except SQLAlchemyError:
        return False


def _left(system: System) -> bool:
    try:
        with redis.Redis.from_url(system.stage.redis_url, decode_responses=True, socket_timeout=5) as queue:
            return bool(left_in(queue))
    except redis.RedisError:
        return True
