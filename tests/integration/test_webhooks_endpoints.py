"""Endpoints that fail, want no more or hang: what it means for their deliveries, and not for others'."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine
from sqlmodel import Session, select

from producer.webhooks import Webhooks
from schemas.database import endpoint_locked
from schemas.deliveries import new_delivery
from schemas.tables import Delivery, WebhookEndpoint
from tests.loopback_http import Asked, LoopbackHttp, Told
from tests.processes import until
from worker.events import Events
from worker.in_flight import InFlight
from worker.webhooks.backlog import _ENDPOINTS_A_LOOK, _LONGEST_DUE, Backlog
from worker.webhooks.breaker import AT_ONCE
from worker.webhooks.decide import GIVE_UP_AFTER_S, Answer, Decision, Delivered, Gone, RetryAt
from worker.webhooks.deliver import WebhookSender
from worker.webhooks.deliveries import Claimed, Deliveries
from worker.webhooks.due import DueWebhooks
from worker.webhooks.overdue import STEP_ROWS, Overdue
from worker.webhooks.post import WebhookPost
from worker.webhooks.sql_threads import SqlThreads

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
URL = "http://hooks.test/"
# Longer than any test: what hangs does so until the test lets it go.
TIMEOUT_S = 100.0


def add(engine: Engine, ids: Iterable[str], *, url: str = URL, now: datetime = NOW, workspace: str = "demo") -> None:
    with Session(engine) as session:
        for id_ in ids:
            session.add(new_delivery(id=id_, workspace=workspace, event_type="e", url=url, data={}, now=now))
        session.commit()


def row(engine: Engine, id_: str) -> Delivery:
    with Session(engine) as session:
        found = session.get(Delivery, id_)
        assert found is not None
        return found


def endpoint(engine: Engine, url: str = URL) -> WebhookEndpoint | None:
    with Session(engine) as session:
        return session.get(WebhookEndpoint, ("demo", url))


def claim(engine: Engine, id_: str, *, now: datetime = NOW) -> Claimed | None:
    return Deliveries(engine).claim(id_, now=now)


def ends(engine: Engine, id_: str, decision: Decision, *, now: datetime = NOW, error: str | None = "no") -> None:
    """Claim the delivery and let its attempt end so."""
    claimed = claim(engine, id_, now=now)
    assert claimed is not None
    assert Deliveries(engine).record(claimed, decision, answer=Answer(None, error), now=now)


def fail(engine: Engine, ids: Iterable[str]) -> None:
    for id_ in ids:
        ends(engine, id_, RetryAt(NOW + timedelta(hours=5)))


def test_of_one_endpoints_deliveries_no_more_are_claimed_at_once_by_all_workers_than_it_takes(engine: Engine) -> None:
    ids = [f"d{number}" for number in range(3 * AT_ONCE)]
    add(engine, ids)
    add(engine, ["another"], url=f"{URL}another")
    add(engine, ["anothers"], workspace="other")
    start = threading.Barrier(len(ids))

    def claims(id_: str) -> Claimed | None:
        start.wait(10)
        return claim(engine, id_)

    with ThreadPoolExecutor(len(ids)) as pool:
        won = [claimed for claimed in pool.map(claims, ids) if claimed is not None]
    assert len(won) == AT_ONCE
    assert {row(engine, id_).attempts for id_ in ids} == {0, 1}
    assert claim(engine, "another") is not None
    assert claim(engine, "anothers") is not None

    Deliveries(engine).record(won[0], Delivered(), answer=Answer(200, None), now=NOW)
    (next_,) = Backlog(engine).due(NOW, limit=10)
    assert claim(engine, next_) is not None
    assert Backlog(engine).due(NOW, limit=10) == []
    # The others' workers died.
    assert len(Backlog(engine).due(NOW + timedelta(seconds=60), limit=10)) == AT_ONCE + 2


def test_after_five_failures_in_a_row_deliveries_stay_due_and_burn_no_attempt_but_one_at_a_time(engine: Engine) -> None:
    ids = [f"d{number}" for number in range(9)]
    add(engine, ids)
    fail(engine, ids[:4])
    ends(engine, ids[4], Delivered(), error=None)
    assert endpoint(engine) is None  # healthy, so there is no row

    fail(engine, ids[5:6])
    add(engine, [f"e{number}" for number in range(6)])
    fail(engine, [f"e{number}" for number in range(4)])
    stored = endpoint(engine)
    assert stored is not None
    assert (stored.failures, stored.open_until) == (5, NOW + timedelta(seconds=30))
    assert claim(engine, "d6") is None
    assert Backlog(engine).due(NOW, limit=10) == []
    assert (row(engine, "d6").attempts, row(engine, "d6").next_attempt_at) == (0, NOW)

    later = NOW + timedelta(seconds=30)
    assert len(Backlog(engine).due(later, limit=10)) == 1
    probe = claim(engine, "d6", now=later)
    assert probe is not None
    assert claim(engine, "d7", now=later) is None
    assert Backlog(engine).due(later, limit=10) == []
    Deliveries(engine).record(probe, RetryAt(NOW + timedelta(hours=5)), answer=Answer(500, "no"), now=later)
    stored = endpoint(engine)
    assert stored is not None
    assert stored.open_until == later + timedelta(seconds=60)

    later += timedelta(seconds=60)
    ends(engine, "d7", Delivered(), now=later, error=None)
    assert endpoint(engine) is None
    assert claim(engine, "d8", now=later) is not None


def test_a_probe_whose_worker_died_is_followed_by_another(engine: Engine) -> None:
    add(engine, [f"d{number}" for number in range(7)])
    fail(engine, [f"d{number}" for number in range(5)])
    later = NOW + timedelta(seconds=30)
    assert claim(engine, "d5", now=later) is not None
    assert claim(engine, "d6", now=later + timedelta(seconds=59)) is None
    assert claim(engine, "d6", now=later + timedelta(seconds=60)) is not None


def test_gone_ends_what_waits_for_the_endpoint_and_what_comes_later(engine: Engine) -> None:
    add(engine, ["gone", "waits", "retries", "in-flight"])
    add(engine, ["elsewhere"], url=f"{URL}elsewhere")
    ends(engine, "retries", RetryAt(NOW + timedelta(hours=5)))
    in_flight = claim(engine, "in-flight")
    assert in_flight is not None
    ends(engine, "gone", Gone(), error="HTTP 410: moved out")
    add(engine, ["later"])
    assert claim(engine, "later") is None

    assert row(engine, "gone").last_error == "HTTP 410: moved out"
    for id_ in ("waits", "retries", "later"):
        stored = row(engine, id_)
        assert stored.state == "failed"
        assert "the endpoint is disabled since 2026-01-02 03:04 UTC (HTTP 410: moved out)" in (stored.last_error or "")
        assert "assistq webhooks enable" in (stored.last_error or "")
    assert (row(engine, "waits").attempts, row(engine, "retries").attempts) == (0, 1)
    assert row(engine, "elsewhere").state == "pending"

    # What was under way when it was disabled ends as it ends, and enables nothing.
    assert Deliveries(engine).record(in_flight, Delivered(), answer=Answer(200, None), now=NOW)
    assert row(engine, "in-flight").state == "delivered"
    stored_endpoint = endpoint(engine)
    assert stored_endpoint is not None
    assert (stored_endpoint.disabled_at, stored_endpoint.disabled_reason) == (NOW, "HTTP 410: moved out")


def test_behind_any_number_of_due_deliveries_each_other_endpoint_has_its_first_one_found(engine: Engine) -> None:
    add(engine, (f"dead{number}" for number in range(_LONGEST_DUE + 50)))
    for number in range(10):
        add(engine, [f"live{number}", f"next{number}"], url=f"{URL}{number}", now=NOW + timedelta(seconds=number))
    add(engine, ["not-yet"], url=f"{URL}not-yet", now=NOW + timedelta(days=1))
    later = NOW + timedelta(minutes=1)
    found = Backlog(engine).due(later, limit=100)
    assert len(found) == AT_ONCE + 10
    assert found[1:11] == [f"live{number}" for number in range(10)]
    assert {id_.rstrip("0123456789") for id_ in found[11:]} == {"dead"}


def test_where_more_endpoints_wait_than_one_look_takes_in_the_next_look_goes_on(engine: Engine) -> None:
    later = NOW + timedelta(minutes=1)
    add(engine, (f"dead{number}" for number in range(_LONGEST_DUE)), url="http://a.test/")
    for number in range(_ENDPOINTS_A_LOOK + 1):
        add(engine, [f"waits{number}"], url=f"http://b.test/{number}", now=NOW + timedelta(days=1))
    add(engine, ["live"], url="http://c.test/")
    backlog = Backlog(engine)
    assert "live" not in backlog.due(later, limit=1000)
    assert "live" in backlog.due(later, limit=1000)
    assert "live" not in backlog.due(later, limit=1000)


def probe_fails(engine: Engine, id_: str, *, now: datetime) -> None:
    ends(engine, id_, RetryAt(now + timedelta(hours=10)), now=now)


def test_what_waited_for_the_whole_schedule_while_its_endpoint_kept_failing_ends_in_small_steps(engine: Engine) -> None:
    overdue_at = NOW + timedelta(seconds=GIVE_UP_AFTER_S)
    add(engine, (f"d{number}" for number in range(STEP_ROWS + 20)))
    add(engine, ["young"], now=NOW + timedelta(hours=1))
    add(engine, ["elsewhere"], url=f"{URL}elsewhere")
    add(engine, ["replayed"])
    fail(engine, [f"d{number}" for number in range(5)])
    replayed_at = NOW + timedelta(hours=2)
    assert Webhooks(engine).replay(["replayed"], now=replayed_at) == ["replayed"]
    overdue = Overdue(engine)

    probe_fails(engine, "d5", now=overdue_at - timedelta(seconds=1))
    assert overdue.give_up(overdue_at - timedelta(seconds=1)) == 0
    assert overdue.give_up(overdue_at) == STEP_ROWS
    assert overdue.give_up(overdue_at) == 20
    assert overdue.give_up(overdue_at) == 0
    stored = row(engine, "d6")
    assert (stored.state, stored.attempts) == ("failed", 0)
    assert stored.last_error == "not delivered within 31 h: the endpoint kept failing"
    assert {row(engine, id_).state for id_ in ("young", "replayed", "elsewhere")} == {"pending"}

    later = replayed_at + timedelta(seconds=GIVE_UP_AFTER_S)
    # Its time is up: it is asked once more first, and nobody knows before it has answered.
    assert overdue.give_up(later) == 0
    probe = claim(engine, "young", now=later)
    assert probe is not None
    assert overdue.give_up(later) == 0
    Deliveries(engine).record(probe, RetryAt(later), answer=Answer(500, "no"), now=later)
    assert overdue.give_up(later) == 2
    assert {row(engine, id_).state for id_ in ("young", "replayed")} == {"failed"}


def test_what_is_old_because_no_worker_ran_is_not_given_up_when_its_endpoint_then_fails(engine: Engine) -> None:
    long_after = NOW + timedelta(days=3)
    add(engine, [f"d{number}" for number in range(9)])
    for number in range(5):
        probe_fails(engine, f"d{number}", now=long_after)
    stored = endpoint(engine)
    assert stored is not None
    assert stored.open_until is not None
    assert Overdue(engine).give_up(long_after) == 0
    assert row(engine, "d8").state == "pending"


@pytest.mark.anyio
async def test_a_look_ends_what_is_overdue(engine: Engine) -> None:
    now = datetime.now(UTC)
    long_ago = now - timedelta(seconds=GIVE_UP_AFTER_S + 60)
    add(engine, ["d"], now=long_ago)
    with Session(engine) as session:
        open_until = now + timedelta(minutes=9)
        session.add(
            WebhookEndpoint(workspace="demo", url=URL, failures=9, failing_since=long_ago, open_until=open_until)
        )
        session.commit()
    async with worker(engine):
        await asyncio.to_thread(until, lambda: row(engine, "d").state == "failed", what="the look has ended it")


@asynccontextmanager
async def worker(engine: Engine, *, capacity: int = 64) -> AsyncIterator[DueWebhooks]:
    """One process's part in deliveries: hints go round within it."""
    post = WebhookPost(allows_private=lambda _: True, max_connections=capacity, timeout_s=TIMEOUT_S)
    threads = SqlThreads()
    sender = WebhookSender(post, deliveries=Deliveries(engine), threads=threads, events=Events())
    crashes: list[Exception] = []

    async def hint(ids: list[str]) -> None:
        in_flight.take(ids)

    due = DueWebhooks(
        Backlog(engine), Overdue(engine), threads=threads, attempt=sender.attempt, hint=hint, events=Events()
    )
    in_flight = InFlight(
        due.deliver,
        capacity=capacity,
        on_crash=lambda _, error: crashes.append(error),
        loop=asyncio.get_running_loop(),
    )

    async def look_on() -> None:
        while True:
            await due.look()
            await asyncio.sleep(0.05)

    looking = asyncio.create_task(look_on())
    yield due
    looking.cancel()
    await in_flight.ended(within_s=0)
    await post.aclose()
    # Not close(): a query that is under way would outlive the engine, and leave its connection open.
    await asyncio.to_thread(threads._threads.shutdown, cancel_futures=True)
    assert not crashes


@pytest.mark.anyio
async def test_a_receiver_that_hangs_with_hundreds_due_delays_no_other(engine: Engine) -> None:
    let_go = threading.Event()

    def hang(_: Asked) -> Told:
        let_go.wait(TIMEOUT_S)
        return Told()

    with LoopbackHttp(hang) as dead, LoopbackHttp(lambda _: Told()) as live:
        try:
            long_ago = datetime.now(UTC) - timedelta(hours=1)
            add(engine, (f"dead{number}" for number in range(400)), url=dead.url, now=long_ago)
            async with worker(engine), worker(engine):
                await asyncio.to_thread(until, lambda: len(dead.asked) == AT_ONCE, what="the dead one is asked")
                add(engine, (f"live{number}" for number in range(20)), url=live.url, now=datetime.now(UTC))
                await asyncio.to_thread(until, lambda: len(live.asked) == 20, what="the other has got all of its own")
                # None of the dead one's has ended, and no more were sent there.
                assert len(dead.asked) == AT_ONCE
                let_go.set()
                await asyncio.to_thread(until, lambda: len(dead.asked) > 3 * AT_ONCE, what="it goes on once it lives")
        finally:
            let_go.set()


@pytest.mark.anyio
async def test_what_waits_for_an_endpoint_is_sent_one_after_the_other_not_look_by_look(engine: Engine) -> None:
    with LoopbackHttp(lambda _: Told()) as live:
        add(engine, (f"d{number}" for number in range(50)), url=live.url, now=datetime.now(UTC))
        post = WebhookPost(allows_private=lambda _: True, max_connections=64)
        threads = SqlThreads()
        sender = WebhookSender(post, deliveries=Deliveries(engine), threads=threads, events=Events())
        hinted: list[str] = []

        async def hint(ids: list[str]) -> None:
            hinted.extend(ids)

        due = DueWebhooks(
            Backlog(engine), Overdue(engine), threads=threads, attempt=sender.attempt, hint=hint, events=Events()
        )
        await due.look()
        assert len(hinted) == AT_ONCE
        while hinted:
            await due.deliver(hinted.pop(0))
        await post.aclose()
        threads.close()
    assert len(live.asked) == 50
    with Session(engine) as session:
        assert {each.state for each in session.exec(select(Delivery))} == {"delivered"}


@pytest.mark.anyio
async def test_deliveries_that_wait_for_the_database_keep_no_thread_from_others(engine: Engine) -> None:
    add(engine, (f"d{number}" for number in range(100)))
    async with worker(engine, capacity=100) as due:
        with endpoint_locked(engine, "demo", URL):
            waiting = [asyncio.create_task(due.deliver(f"d{number}")) for number in range(100)]
            # Each task has begun when this one comes back.
            await asyncio.sleep(0)
            async with asyncio.timeout(10):
                assert await asyncio.to_thread(threading.current_thread) is not threading.main_thread()
            assert not any(each.done() for each in waiting)
            for each in waiting:
                each.cancel()
