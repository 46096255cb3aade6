"""Sends one delivery: claim → sign → POST → decide → record → tell."""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError, version
from typing import assert_never

from standardwebhooks import Webhook

from worker.events import Events, WebhookAttempted
from worker.webhooks.decide import Decision, Delivered, GaveUp, Gone, RetryAt, decide
from worker.webhooks.deliveries import Claimed, Deliveries
from worker.webhooks.endpoints import Endpoint
from worker.webhooks.post import WebhookPost
from worker.webhooks.sql_threads import SqlThreads
from worker.webhooks.unrecorded import NOT_YET_RETRY_S, ContentNotYetError, without_words

BodyOf = Callable[[Claimed], Awaitable[str]]
"""Returns what is sent for a claimed delivery, the same for each of its attempts; raises ContentNotYetError."""


def _now() -> datetime:
    return datetime.now(UTC)


async def stored_body(claimed: Claimed) -> str:
    """Return the body as it stands in the delivery's row."""
    return claimed.body


async def nothing_to_let_go(claimed: Claimed) -> None:
    """Do nothing: what was sent is in the delivery's row."""


class WebhookSender:
    """Sends deliveries, at least once each: a crash between POST and record sends it again, same id."""

    def __init__(
        self,
        post: WebhookPost,
        *,
        deliveries: Deliveries,
        threads: SqlThreads,
        events: Events,
        body_of: BodyOf = stored_body,
        ended: Callable[[Claimed], Awaitable[None]] = nothing_to_let_go,
        now: Callable[[], datetime] = _now,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """Keep the parts; `draw` gives jitter from 0 to 1, `ended` hears of a delivery that is not attempted again.

        The time-out of a POST must be shorter than the deliveries' lease.
        """
        self._post = post
        self._deliveries = deliveries
        self._threads = threads
        self._events = events
        self._body_of = body_of
        self._ended = ended
        self._now = now
        self._draw = draw

    async def attempt(self, delivery_id: str) -> Endpoint | None:
        """Send the delivery once, if it may be sent now; return where it was sent to.

        A receiver's fault is recorded, never raised. A database that is away raises
        SQLAlchemy's error; the delivery is then due again when its lease ends.
        """
        claimed = await self._threads.run(self._deliveries.claim, delivery_id, now=self._now())
        if claimed is None:
            return None
        try:
            body = await self._body_of(claimed)
        except ContentNotYetError:
            until = self._now() + timedelta(seconds=NOT_YET_RETRY_S)
            await self._threads.run(self._deliveries.postpone, claimed, until=until)
            return None
        signed_at = self._now()
        secrets = await self._threads.run(self._deliveries.secrets_of, claimed.workspace, now=signed_at)
        headers = _signed_headers(claimed.id, body, secrets, at=signed_at)
        started = time.monotonic()
        answer = await self._post.send(claimed.url, workspace=claimed.workspace, headers=headers, body=body.encode())
        duration_s = time.monotonic() - started
        if claimed.unrecorded:
            answer = without_words(answer)
        now = self._now()
        decision = decide(answer, attempts=claimed.attempts_on_schedule, now=now, jitter=self._draw())
        await self._threads.run(self._deliveries.record, claimed, decision, answer=answer, now=now)
        if not isinstance(decision, RetryAt):
            await self._ended(claimed)
        self._events.emit(
            WebhookAttempted(
                delivery_id=claimed.id,
                batch_id=claimed.batch_id,
                job_id=claimed.job_id,
                event_type=claimed.event_type,
                outcome=_name_of(decision),
                http_status=answer.status,
                duration_s=duration_s,
            )
        )
        return claimed.endpoint


def _signed_headers(id_: str, body: str, secrets: Sequence[str], *, at: datetime) -> dict[str, str]:
    """Return the headers with one signature for each secret: a receiver that knows either takes the event."""
    signatures = [Webhook(secret).sign(msg_id=id_, timestamp=at.astimezone(UTC), data=body) for secret in secrets]
    return {
        "content-type": "application/json",
        "user-agent": f"assistq/{_version()}",
        "webhook-id": id_,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": " ".join(signatures),
    }


def _name_of(decision: Decision) -> str:
    match decision:
        case Delivered():
            return "delivered"
        case RetryAt():
            return "retry"
        case GaveUp() | Gone():
            return "failed"
        case _:
            assert_never(decision)


def _version() -> str:
    try:
        return version("assistq")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "0"
