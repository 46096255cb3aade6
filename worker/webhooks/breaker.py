"""Whether something may be sent to an endpoint now, and what an answer means for the next: decided purely.

An endpoint is a workspace and a URL. A circuit breaker keeps a dead one from being asked all the time:
after some failures in a row it opens, and lets one delivery at a time through when its time is up.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

# POSTs to one endpoint at once, of all workers together.
AT_ONCE = 4
FAILURES_TO_OPEN = 5
# Seconds for which it opens; doubled at each failed probe.
OPEN_S = 30
OPEN_AT_MOST_S = 600


@dataclass(frozen=True, slots=True)
class Health:
    """What is held against an endpoint; see schemas.tables.WebhookEndpoint."""

    failures: int = 0
    failing_since: datetime | None = None
    open_until: datetime | None = None
    disabled_at: datetime | None = None
    disabled_reason: str | None = None


HEALTHY = Health()


class Admission(StrEnum):
    """What becomes of a due delivery now."""

    SEND = "send"
    PROBE = "probe"
    WAIT = "wait"
    REFUSE = "refuse"


def admit(health: Health, *, running: int, now: datetime) -> Admission:
    """Return what becomes of one more delivery while `running` are being sent.

    A probe's claim has to set `open_until` to the end of its lease: so there is one at a time, and
    another one after the death of its worker.
    """
    if health.disabled_at is not None:
        return Admission.REFUSE
    if health.open_until is not None:
        return Admission.PROBE if health.open_until <= now else Admission.WAIT
    return Admission.SEND if running < AT_ONCE else Admission.WAIT


def room(health: Health, *, running: int, now: datetime) -> int:
    """Return how many more deliveries are worth a look now: of a disabled endpoint too, whose claims end them."""
    match admit(health, running=running, now=now):
        case Admission.SEND | Admission.REFUSE:
            return max(1, AT_ONCE - running)
        case Admission.PROBE:
            return 1
        case Admission.WAIT:
            return 0


def kept_failing(health: Health, *, running: int, since: datetime, now: datetime) -> bool:
    """Return whether the endpoint took nothing since that time, and failed a moment ago.

    Both: where no worker ran for days, the endpoint is asked once more before its deliveries are given up. While
    `running` are being sent nobody knows.
    """
    return (
        health.failing_since is not None
        and health.failing_since <= since
        and admit(health, running=running, now=now) is Admission.WAIT
        and running == 0
    )


def after_success(health: Health) -> Health:
    """Return the health of an endpoint that took an event: nothing is held against it, unless it is disabled."""
    return HEALTHY if health.disabled_at is None else health


def after_failure(health: Health, *, probe: bool, now: datetime) -> Health:
    """Return the endpoint's health after one more failure; `probe` if it was let through an open circuit.

    What was sent before the circuit opened, or the endpoint was disabled, and fails now says nothing new.
    """
    if health.disabled_at is not None or (health.open_until is not None and not probe):
        return health
    failures = health.failures + 1
    health = replace(health, failures=failures, failing_since=health.failing_since or now)
    if failures < FAILURES_TO_OPEN:
        return health
    # A power of two that no number of failures makes too large.
    open_s = min(OPEN_AT_MOST_S, OPEN_S * 2 ** min(failures - FAILURES_TO_OPEN, 16))
    return replace(health, open_until=now + timedelta(seconds=open_s))


def after_gone(health: Health, *, reason: str, now: datetime) -> Health:
    """Return the health of an endpoint that wants no more; the first time stands."""
    if health.disabled_at is not None:
        return health
    return replace(health, failures=health.failures + 1, open_until=None, disabled_at=now, disabled_reason=reason)
