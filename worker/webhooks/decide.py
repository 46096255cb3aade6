"""What follows from one POST of a webhook: decided purely, recorded elsewhere.

This page is the only place that knows what is sent again, and when.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from http import HTTPStatus

# Seconds after the first, second, … failed attempt; 8 attempts in about 28 hours.
RETRY_AFTER_S = (5, 5 * 60, 30 * 60, 2 * 3600, 5 * 3600, 10 * 3600, 10 * 3600)
# Retries come up to this much later, never earlier, so that they do not all meet at once.
JITTER = 0.1
# How long a delivery may wait for an endpoint that keeps failing: the whole schedule, and what its attempts and
# the looks for what is due add to it.
GIVE_UP_AFTER_S = int(sum(RETRY_AFTER_S) * (1 + JITTER)) + 60 * 60


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a POST: the receiver's `status`, or None where none was read.

    `error` says what was wrong, in one line; None if the status was a success.
    """

    status: int | None
    error: str | None


@dataclass(frozen=True, slots=True)
class Delivered:
    """The receiver took the event: its status was 2xx."""


@dataclass(frozen=True, slots=True)
class RetryAt:
    """The event is to be sent again at this time."""

    at: datetime


@dataclass(frozen=True, slots=True)
class GaveUp:
    """The event is not sent again, unless somebody replays it."""


@dataclass(frozen=True, slots=True)
class Gone:
    """The receiver wants no more events at this address, ever."""


Decision = Delivered | RetryAt | GaveUp | Gone


def decide(answer: Answer, *, attempts: int, now: datetime, jitter: float) -> Decision:
    """Return what follows; `attempts` on the schedule, this one included; `jitter` is a draw from 0 to 1.

    Only 2xx is a success: a redirect is a fault of the address and is not followed. 410
    says that the receiver wants no more.
    """
    if answer.status is not None and is_success(answer.status):
        return Delivered()
    if answer.status == HTTPStatus.GONE:
        return Gone()
    if attempts > len(RETRY_AFTER_S):
        return GaveUp()
    delay_s = RETRY_AFTER_S[attempts - 1] * (1 + JITTER * jitter)
    return RetryAt(now + timedelta(seconds=delay_s))


def is_success(status: int) -> bool:
    """Return whether the receiver took the event."""
    return HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES
