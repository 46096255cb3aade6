"""Webhooks over real HTTP to a receiver that verifies them, from real databases."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError
from sqlmodel import Session, select
from standardwebhooks import Webhook, WebhookVerificationError

from schemas.deliveries import new_delivery
from schemas.signing_secrets import rotate
from schemas.tables import Delivery, RetiredWebhookSecret
from tests.loopback_http import LoopbackHttp, Told
from worker.events import Event, Events, WebhookAttempted
from worker.net.guard import Resolve
from worker.webhooks.decide import Answer, Decision
from worker.webhooks.deliver import WebhookSender
from worker.webhooks.deliveries import Claimed, Deliveries
from worker.webhooks.post import WebhookPost
from worker.webhooks.sql_threads import SqlThreads

DEADLINE_S = 10


@dataclass
class Receiver:
    """What arrives, and how it is answered; `hold` keeps the answer back, `hold_body` its body."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b"thanks"
    hold: threading.Event | None = None
    hold_body: threading.Event | None = None
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    arrived: threading.Event = field(default_factory=threading.Event)
    url: str = ""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    told = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            told.got.append(({name.lower(): value for name, value in self.headers.items()}, body))
            told.arrived.set()
            if told.hold is not None:
                told.hold.wait(DEADLINE_S)
            self.send_response(told.status)
            for name, value in told.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(told.body)))
            self.end_headers()
            self.wfile.flush()
            if told.hold_body is not None:
                told.hold_body.wait(DEADLINE_S)
            self.wfile.write(told.body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None:
            """A sender that stopped reading is no error of the test."""

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    told.url = f"http://127.0.0.1:{server.server_port}/hook"
    yield told
    for held in (told.hold, told.hold_body):
        if held is not None:
            held.set()
    server.shutdown()
    server.server_close()
    thread.join()


def add(engine: Engine, url: str, *, id_: str = "msg_b1_completed") -> str:
    with Session(engine) as session:
        session.add(
            new_delivery(
                id=id_,
                workspace="demo",
                event_type="batch.completed",
                url=url,
                data={"batch_id": "b1", "text": "é \u2028"},
                now=datetime.now(UTC),
                batch_id="b1",
            )
        )
        session.commit()
    return id_


def row(engine: Engine, id_: str) -> Delivery:
    with Session(engine) as session:
        found = session.get(Delivery, id_)
        assert found is not None
        return found


def secret_of(engine: Engine) -> str:
    return Deliveries(engine).secrets_of("demo", now=datetime.now(UTC))[0]


def attempt(
    engine: Engine,
    id_: str,
    *,
    at: datetime | None = None,
    timeout_s: float = 5,
    deliveries: Deliveries | None = None,
    allowed: Container[str] = ("demo",),
    resolve: Resolve | None = None,
) -> list[WebhookAttempted]:
    """Make one attempt, as at the time `at`; return the events that it emitted."""
    told: list[Event] = []

    async def main() -> None:
        post = WebhookPost(allows_private=allowed.__contains__, max_connections=4, timeout_s=timeout_s, resolve=resolve)
        sender = WebhookSender(
            post,
            deliveries=deliveries or Deliveries(engine),
            threads=(threads := SqlThreads()),
            events=Events(told.append),
            now=lambda: at or datetime.now(UTC),
            draw=lambda: 0.0,
        )
        try:
            await sender.attempt(id_)
        finally:
            await post.aclose()
            threads.close()

    asyncio.run(main())
    return [event for event in told if isinstance(event, WebhookAttempted)]


def test_a_receiver_verifies_what_it_gets_and_the_delivery_ends(engine: Engine, receiver: Receiver) -> None:
    (event,) = attempt(engine, add(engine, receiver.url))
    ((headers, body),) = receiver.got
    secret = secret_of(engine)
    verified = Webhook(secret).verify(body, headers)
    assert (verified["type"], verified["data"]) == ("batch.completed", {"batch_id": "b1", "text": "é \u2028"})
    assert headers["webhook-id"] == "msg_b1_completed"
    assert headers["content-type"] == "application/json"
    assert headers["user-agent"].startswith("assistq/")
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(body + b" ", headers)
    stored = row(engine, "msg_b1_completed")
    assert (stored.state, stored.attempts, stored.last_status, stored.last_error) == ("delivered", 1, 200, None)
    assert (event.outcome, event.http_status, event.batch_id) == ("delivered", 200, "b1")
    assert event.duration_s > 0


def test_a_failed_attempt_is_sent_again_with_the_same_id_and_body_and_a_new_timestamp(
    engine: Engine, receiver: Receiver
) -> None:
    receiver.status, receiver.body = 500, b"out of\r\n\x00order " + b"x" * 5000
    id_ = add(engine, receiver.url)
    first_at = datetime.now(UTC)
    (event,) = attempt(engine, id_, at=first_at)
    assert (event.outcome, event.http_status) == ("retry", 500)
    stored = row(engine, id_)
    assert (stored.state, stored.next_attempt_at) == ("pending", first_at + timedelta(seconds=5))
    assert stored.last_error is not None
    assert stored.last_error.startswith("HTTP 500: out of order xxx")
    assert len(stored.last_error) <= 1024 + len("HTTP 500: ")

    assert attempt(engine, id_, at=first_at + timedelta(seconds=4.9)) == []
    receiver.status = 200
    (event,) = attempt(engine, id_, at=first_at + timedelta(seconds=5))
    assert event.outcome == "delivered"
    (first, first_body), (second, second_body) = receiver.got
    assert first["webhook-id"] == second["webhook-id"]
    assert first_body == second_body
    assert int(second["webhook-timestamp"]) == int(first["webhook-timestamp"]) + 5
    Webhook(secret_of(engine)).verify(second_body, second)
    assert row(engine, id_).last_error is None


def test_a_redirect_is_not_followed(engine: Engine, receiver: Receiver) -> None:
    receiver.status, receiver.headers = 302, {"location": receiver.url + "/elsewhere"}
    (event,) = attempt(engine, add(engine, receiver.url))
    assert (event.outcome, event.http_status) == ("retry", 302)
    assert len(receiver.got) == 1


def test_gone_ends_the_delivery_even_if_its_body_never_comes(engine: Engine, receiver: Receiver) -> None:
    receiver.status, receiver.hold_body = 410, threading.Event()
    id_ = add(engine, receiver.url)
    (event,) = attempt(engine, id_, timeout_s=0.5)
    assert (event.outcome, event.http_status) == ("failed", 410)
    assert row(engine, id_).state == "failed"
    assert attempt(engine, id_, at=datetime.now(UTC) + timedelta(days=1)) == []


def test_a_2xx_counts_although_its_body_never_comes(engine: Engine, receiver: Receiver) -> None:
    receiver.hold_body = threading.Event()
    (event,) = attempt(engine, add(engine, receiver.url))
    assert event.outcome == "delivered"


def test_the_eighth_failure_is_the_last(engine: Engine, receiver: Receiver) -> None:
    receiver.status = 503
    id_ = add(engine, receiver.url)
    at = datetime.now(UTC)
    outcomes = []
    while events := attempt(engine, id_, at=at):
        outcomes.append(events[0].outcome)
        at = max(row(engine, id_).next_attempt_at, at)
    assert outcomes == ["retry"] * 7 + ["failed"]
    assert row(engine, id_).state == "failed"


def test_a_refused_connection_is_a_retry(engine: Engine) -> None:
    with socket.socket() as taken:  # bound and not listening: nobody else gets the port
        taken.bind(("127.0.0.1", 0))
        id_ = add(engine, f"http://127.0.0.1:{taken.getsockname()[1]}/")
        (event,) = attempt(engine, id_)
    assert (event.outcome, event.http_status) == ("retry", None)
    assert (row(engine, id_).last_error or "").startswith("ConnectError: ")


@pytest.mark.parametrize("url", ["no-url", "ftp://127.0.0.1/", "http://", "http://127.0.0.1:99999/", "http://a\x7fb/"])
def test_an_address_that_is_none_is_a_retry_not_an_exception(engine: Engine, url: str) -> None:
    id_ = add(engine, url)
    (event,) = attempt(engine, id_)
    assert event.outcome == "retry"
    assert row(engine, id_).last_error


def test_a_receiver_that_says_nothing_is_given_the_time_out_and_no_more(engine: Engine, receiver: Receiver) -> None:
    receiver.hold = threading.Event()
    id_ = add(engine, receiver.url)
    (event,) = attempt(engine, id_, timeout_s=0.3)
    assert (event.outcome, event.http_status) == ("retry", None)
    assert row(engine, id_).last_error == "no answer within 0.3 s"


def test_two_senders_at_once_deliver_once(engine: Engine, receiver: Receiver) -> None:
    """The second begins while the first one's POST is under way."""
    receiver.hold = threading.Event()
    id_ = add(engine, receiver.url)
    first = threading.Thread(target=attempt, args=(engine, id_))
    first.start()
    try:
        assert receiver.arrived.wait(DEADLINE_S)
        assert attempt(engine, id_) == []
    finally:
        receiver.hold.set()
        first.join()
    assert len(receiver.got) == 1
    assert row(engine, id_).state == "delivered"


def test_many_senders_that_start_together_deliver_once(engine: Engine, receiver: Receiver) -> None:
    id_ = add(engine, receiver.url)
    threads = [threading.Thread(target=attempt, args=(engine, id_)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(receiver.got) == 1


def test_after_a_crash_between_post_and_record_it_is_sent_again_with_the_same_id(
    engine: Engine, receiver: Receiver
) -> None:
    class Crashing(Deliveries):
        def record(self, claimed: Claimed, decision: Decision, *, answer: Answer, now: datetime) -> bool:
            raise OperationalError("UPDATE", {}, Exception("the database is gone"))

    id_ = add(engine, receiver.url)
    with pytest.raises(OperationalError):
        attempt(engine, id_, deliveries=Crashing(engine))
    assert row(engine, id_).state == "pending"
    assert attempt(engine, id_) == []
    attempt(engine, id_, at=datetime.now(UTC) + timedelta(seconds=61))
    assert [headers["webhook-id"] for headers, _ in receiver.got] == [id_, id_]
    assert row(engine, id_).state == "delivered"


def test_a_receivers_cookie_is_not_sent_to_the_next(engine: Engine, receiver: Receiver) -> None:
    receiver.headers = {"set-cookie": "session=1"}

    async def main() -> None:
        post = WebhookPost(allows_private=lambda _: True, max_connections=4)
        threads = SqlThreads()
        sender = WebhookSender(post, deliveries=Deliveries(engine), threads=threads, events=Events())
        await sender.attempt(add(engine, receiver.url, id_="one"))
        await sender.attempt(add(engine, receiver.url, id_="two"))
        await post.aclose()
        threads.close()

    asyncio.run(main())
    assert [headers.get("cookie") for headers, _ in receiver.got] == [None, None]


class Names:
    """A resolver whose name has one address at the first look and another at each later one."""

    def __init__(self, *addresses: str) -> None:
        self._addresses = list(addresses)
        self.asked: list[str] = []

    async def resolve(self, host: str) -> Sequence[str]:
        self.asked.append(host)
        return [self._addresses.pop(0) if len(self._addresses) > 1 else self._addresses[0]]


def refused(engine: Engine, id_: str, events: list[WebhookAttempted]) -> None:
    """Assert that this attempt was refused, says so, and is made again later."""
    (event,) = events
    assert (event.outcome, event.http_status) == ("retry", None)
    stored = row(engine, id_)
    assert (stored.state, stored.attempts) == ("pending", 1)
    assert "is not on the public internet" in (stored.last_error or "")
    assert "'demo' in ASSISTQ_PRIVATE_NETWORK_WORKSPACES" in (stored.last_error or "")


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "2130706433",
        "0x7f.1",
        "127.1",
        "0",
        "localhost",
        "public.test@127.0.0.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "169.254.169.254",
        "10.0.0.1",
        "[fe80::1]",
    ],
)
def test_an_address_that_is_not_public_is_refused_however_it_is_written(
    engine: Engine, receiver: Receiver, host: str
) -> None:
    id_ = add(engine, receiver.url.replace("127.0.0.1", host))
    refused(engine, id_, attempt(engine, id_, allowed=("other",)))
    assert not receiver.got


def test_a_name_that_leads_to_a_private_address_is_refused(engine: Engine, receiver: Receiver) -> None:
    id_ = add(engine, receiver.url.replace("127.0.0.1", "hooks.test"))
    refused(engine, id_, attempt(engine, id_, allowed=(), resolve=Names("127.0.0.1").resolve))
    assert not receiver.got


def test_a_name_is_looked_up_once_so_that_it_cannot_become_loopback_after_the_check(
    engine: Engine, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 127.0.0.1 counts as public here, for the test to have a receiver; what the name becomes next does not.
    monkeypatch.setattr("worker.net.guard.is_public", lambda address: str(address) == "127.0.0.1")
    names = Names("127.0.0.1", "127.0.0.2")
    id_ = add(engine, receiver.url.replace("127.0.0.1", "hooks.test"))
    (event,) = attempt(engine, id_, allowed=(), resolve=names.resolve)
    assert event.outcome == "delivered"
    ((headers, _),) = receiver.got
    assert headers["host"].startswith("hooks.test:")
    assert names.asked == ["hooks.test"]

    again = add(engine, receiver.url.replace("127.0.0.1", "hooks.test"), id_="again")
    refused(engine, again, attempt(engine, again, allowed=(), resolve=names.resolve))
    assert len(receiver.got) == 1


def test_a_public_receiver_cannot_redirect_to_a_private_address(
    engine: Engine, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LoopbackHttp(lambda _: Told()) as private:
        target = private.url.replace("127.0.0.1", "127.0.0.2")
        receiver.status, receiver.headers = 307, {"location": target}
        monkeypatch.setattr("worker.net.guard.is_public", lambda address: str(address) == "127.0.0.1")
        (event,) = attempt(engine, add(engine, receiver.url), allowed=())
        assert (event.outcome, event.http_status) == ("retry", 307)
        assert not private.asked


def test_no_proxy_of_the_environment_gets_a_webhook(
    engine: Engine, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LoopbackHttp(lambda _: Told()) as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        (event,) = attempt(engine, add(engine, receiver.url))
        assert event.outcome == "delivered"
        assert not proxy.asked


def test_while_secrets_are_rotated_a_receiver_with_either_verifies_and_later_only_with_the_new_one(
    engine: Engine, receiver: Receiver
) -> None:
    old = secret_of(engine)
    now = datetime.now(UTC)
    with Session(engine) as session:
        new = rotate(session, "demo", now=now, overlap=timedelta(hours=24))
    # Signatures are made with the time of sending, which a receiver compares to its own clock.
    attempt(engine, add(engine, receiver.url, id_="during"))
    ((headers, body),) = receiver.got
    assert [part.partition(",")[0] for part in headers["webhook-signature"].split()] == ["v1", "v1"]
    for secret in (old, new):
        assert Webhook(secret).verify(body, headers)["type"] == "batch.completed"

    with Session(engine) as session:
        for retired in session.exec(select(RetiredWebhookSecret)):
            retired.expires_at = now
        session.commit()
    attempt(engine, add(engine, receiver.url, id_="after"))
    headers, body = receiver.got[1]
    assert len(headers["webhook-signature"].split()) == 1
    Webhook(new).verify(body, headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(old).verify(body, headers)
