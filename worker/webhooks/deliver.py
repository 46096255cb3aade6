"""Sends one delivery: claim → sign → POST → decide → record → tell."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from http.cookiejar import CookieJar, DefaultCookiePolicy
from importlib.metadata import PackageNotFoundError, version
from typing import assert_never

import httpx
from standardwebhooks import Webhook

from worker.events import Events, WebhookAttempted
from worker.webhooks.decide import Answer, Decision, Delivered, GaveUp, RetryAt, decide, is_success
from worker.webhooks.deliveries import Claimed, Deliveries
from worker.webhooks.unrecorded import NOT_YET_RETRY_S, ContentNotYetError, without_words

TIMEOUT_S = 20.0
EXCERPT_BYTES = 1024
# What a receiver, or an address that is none, can do to a POST. InvalidURL is no HTTPError.
RECEIVER_FAULTS = (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, UnicodeError)


def webhook_client(*, max_connections: int) -> httpx.AsyncClient:
    """Return the client to send webhooks with.

    It follows no redirect and keeps no cookie, because receivers of all workspaces share it.
    `max_connections` must be no fewer than the attempts that run at once.
    """
    no_cookies = CookieJar(policy=DefaultCookiePolicy(allowed_domains=[]))
    return httpx.AsyncClient(
        cookies=no_cookies,
        follow_redirects=False,
        timeout=TIMEOUT_S,
        limits=httpx.Limits(max_connections=max_connections, max_keepalive_connections=0),
    )


def _now() -> datetime:
    return datetime.now(UTC)


async def _as_stored(claimed: Claimed) -> str:
    return claimed.body


async def _nothing_to_let_go(claimed: Claimed) -> None:  # noqa: ARG001 - the signature of what hears
    return


class WebhookSender:
    """Sends deliveries, at least once each: a crash between POST and record sends it again, same id."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        *,
        deliveries: Deliveries,
        events: Events,
        body_of: Callable[[Claimed], Awaitable[str]] = _as_stored,
        ended: Callable[[Claimed], Awaitable[None]] = _nothing_to_let_go,
        timeout_s: float = TIMEOUT_S,
        now: Callable[[], datetime] = _now,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """Keep the parts; `timeout_s` is for a whole POST, `draw` gives jitter from 0 to 1.

        `body_of` returns what to send, or raises ContentNotYetError; `ended` hears of a delivery that is
        not attempted again.

        `timeout_s` must be shorter than the deliveries' lease.
        """
        self._client = client
        self._deliveries = deliveries
        self._body_of = body_of
        self._ended = ended
        self._events = events
        self._timeout_s = timeout_s
        self._now = now
        self._draw = draw

    async def attempt(self, delivery_id: str) -> None:
        """Send the delivery once, if it is due and no other worker is sending it.

        A receiver's fault is recorded, never raised. A database that is away raises
        SQLAlchemy's error; the delivery is then due again when its lease ends.
        """
        claimed = await asyncio.to_thread(self._deliveries.claim, delivery_id, now=self._now())
        if claimed is None:
            return
        try:
            body = await self._body_of(claimed)
        except ContentNotYetError:
            until = self._now() + timedelta(seconds=NOT_YET_RETRY_S)
            await asyncio.to_thread(self._deliveries.postpone, claimed, until=until)
            return
        secret = await asyncio.to_thread(self._deliveries.secret_of, claimed.workspace)
        started = time.monotonic()
        answer = await self._post(claimed, body, secret)
        duration_s = time.monotonic() - started
        if claimed.unrecorded:
            answer = without_words(answer)
        now = self._now()
        decision = decide(answer, attempts=claimed.attempts, now=now, jitter=self._draw())
        await asyncio.to_thread(self._deliveries.record, claimed, decision, answer=answer, now=now)
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

    async def _post(self, claimed: Claimed, body: str, secret: str) -> Answer:
        headers = _signed_headers(claimed, body, secret, at=self._now())
        fault = _fault_of_address(claimed.url)
        if fault is not None:
            return Answer(status=None, error=fault)
        status: int | None = None
        excerpt = bytearray()
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                self._client.stream(
                    "POST", claimed.url, content=body.encode(), headers=headers, follow_redirects=False
                ) as response,
            ):
                status = response.status_code
                if not is_success(status):
                    await _read_excerpt(response, excerpt)
        except (TimeoutError, *RECEIVER_FAULTS) as exc:
            # Once a status was read it is the answer, whatever became of the body.
            if status is None:
                return Answer(status=None, error=self._told(exc))
        if is_success(status):
            return Answer(status=status, error=None)
        return Answer(status=status, error=_one_line(f"HTTP {status}: {excerpt.decode(errors='replace')}"))

    def _told(self, exc: Exception) -> str:
        if isinstance(exc, (TimeoutError, httpx.TimeoutException)):
            return f"no answer within {self._timeout_s:g} s"
        return _one_line(f"{type(exc).__name__}: {exc}")


def _signed_headers(claimed: Claimed, body: str, secret: str, *, at: datetime) -> dict[str, str]:
    return {
        "content-type": "application/json",
        "user-agent": f"assistq/{_version()}",
        "webhook-id": claimed.id,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": Webhook(secret).sign(msg_id=claimed.id, timestamp=at.astimezone(UTC), data=body),
    }


def _fault_of_address(url: str) -> str | None:
    """Return what is wrong with the address; a port beyond 65535 would be an OverflowError deep in the client."""
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, UnicodeError) as exc:
        return _one_line(f"the address is no URL: {exc}")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        return "the address must begin with http:// or https:// and name a host"
    if parsed.port is not None and not 0 < parsed.port <= 65_535:
        return f"the address has port {parsed.port}; ports end at 65535"
    return None


async def _read_excerpt(response: httpx.Response, excerpt: bytearray) -> None:
    """Fill `excerpt` with the first EXCERPT_BYTES of the body, undecoded: a body may be a bomb."""
    async for chunk in response.aiter_raw(EXCERPT_BYTES):
        excerpt += chunk[: EXCERPT_BYTES - len(excerpt)]
        if len(excerpt) >= EXCERPT_BYTES:
            return


def _one_line(text: str) -> str:
    """Return the text with each run of white space and unprintables as one space.

    NUL among them, which PostgreSQL refuses.
    """
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def _name_of(decision: Decision) -> str:
    match decision:
        case Delivered():
            return "delivered"
        case RetryAt():
            return "retry"
        case GaveUp():
            return "failed"
        case _:
            assert_never(decision)


def _version() -> str:
    try:
        return version("assistq")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "0"
