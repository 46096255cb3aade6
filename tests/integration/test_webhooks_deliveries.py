"""Deliveries and signing secrets on real databases."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import SessionTransaction
from sqlmodel import Session

from schemas.deliveries import new_delivery
from schemas.signing_secrets import rotate, signing_secret, signing_secrets
from schemas.tables import Delivery, WebhookSecret
from worker.webhooks.backlog import Backlog
from worker.webhooks.decide import Answer, Delivered, GaveUp, RetryAt
from worker.webhooks.deliveries import Deliveries

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
RACERS = 6
T = TypeVar("T")


def add(engine: Engine, id_: str, *, now: datetime = NOW) -> None:
    with Session(engine) as session:
        session.add(
            new_delivery(
                id=id_,
                workspace="demo",
                event_type="batch.completed",
                url="http://x",
                data={"n": 1},
                now=now,
                batch_id="b1",
            )
        )
        session.commit()


def row(engine: Engine, id_: str) -> Delivery:
    with Session(engine) as session:
        found = session.get(Delivery, id_)
        assert found is not None
        return found


def due(engine: Engine, now: datetime, limit: int = 10) -> list[str]:
    return Backlog(engine).due(now, limit=limit)


def race(act: Callable[[], T]) -> list[T]:
    """Run the act in RACERS threads that start at the same moment."""
    start = threading.Barrier(RACERS)

    def racer(_: int) -> T:
        start.wait(timeout=10)
        return act()

    with ThreadPoolExecutor(RACERS) as pool:
        return list(pool.map(racer, range(RACERS)))


def test_due_are_those_whose_time_has_come_longest_due_first(engine: Engine) -> None:
    for id_, age_s in (("young", 1), ("old", 60), ("future", -1)):
        add(engine, id_, now=NOW - timedelta(seconds=age_s))
    assert due(engine, NOW) == ["old", "young"]
    assert due(engine, NOW, 1) == ["old"]


def test_of_workers_that_claim_at_once_one_gets_the_delivery(engine: Engine) -> None:
    add(engine, "d")
    claims = race(lambda: Deliveries(engine).claim("d", now=NOW))
    won = [claim for claim in claims if claim is not None]
    assert len(won) == 1
    assert (won[0].attempts, won[0].batch_id, json.loads(won[0].body)["data"]) == (1, "b1", {"n": 1})


def test_a_claimed_delivery_is_due_again_when_its_lease_ends(engine: Engine) -> None:
    add(engine, "d")
    deliveries = Deliveries(engine, lease_s=60)
    assert deliveries.claim("d", now=NOW) is not None
    assert due(engine, NOW + timedelta(seconds=59)) == []
    assert deliveries.claim("d", now=NOW + timedelta(seconds=59)) is None
    again = deliveries.claim("d", now=NOW + timedelta(seconds=60))
    assert again is not None
    assert again.attempts == 2


def test_a_worker_whose_lease_ended_cannot_write_over_its_successor(engine: Engine) -> None:
    add(engine, "d")
    deliveries = Deliveries(engine, lease_s=60)
    first = deliveries.claim("d", now=NOW)
    second = deliveries.claim("d", now=NOW + timedelta(seconds=60))
    assert first is not None
    assert second is not None
    assert deliveries.record(second, Delivered(), answer=Answer(200, None), now=NOW)
    assert not deliveries.record(first, GaveUp(), answer=Answer(410, "gone"), now=NOW)
    assert row(engine, "d").state == "delivered"


def test_what_came_of_an_attempt_is_in_the_row(engine: Engine) -> None:
    deliveries = Deliveries(engine)
    for id_ in ("taken", "again", "gone"):
        add(engine, id_)
    taken, again, gone = (deliveries.claim(id_, now=NOW) for id_ in ("taken", "again", "gone"))
    assert taken is not None
    assert again is not None
    assert gone is not None
    later = NOW + timedelta(seconds=5)
    deliveries.record(taken, Delivered(), answer=Answer(204, None), now=later)
    deliveries.record(again, RetryAt(later), answer=Answer(None, "refused"), now=NOW)
    deliveries.record(gone, GaveUp(), answer=Answer(410, "HTTP 410: no"), now=NOW)

    stored = row(engine, "taken")
    assert (stored.state, stored.delivered_at, stored.last_status, stored.last_error) == ("delivered", later, 204, None)
    stored = row(engine, "again")
    assert (stored.state, stored.next_attempt_at, stored.last_error) == ("pending", later, "refused")
    stored = row(engine, "gone")
    assert (stored.state, stored.delivered_at, stored.last_status) == ("failed", None, 410)
    assert due(engine, NOW + timedelta(days=9)) == ["again"]


def test_what_does_not_exist_or_has_ended_cannot_be_claimed(engine: Engine) -> None:
    add(engine, "d")
    deliveries = Deliveries(engine)
    claimed = deliveries.claim("d", now=NOW)
    assert claimed is not None
    deliveries.record(claimed, Delivered(), answer=Answer(200, None), now=NOW)
    assert deliveries.claim("d", now=NOW + timedelta(days=1)) is None
    assert deliveries.claim("nobody", now=NOW) is None


def own_secret(engine: Engine, workspace: str) -> str:
    (secret,) = Deliveries(engine).secrets_of(workspace, now=NOW)
    return secret


def test_a_secret_is_32_random_bytes_and_stays(engine: Engine) -> None:
    secret = own_secret(engine, "demo")
    assert secret.startswith("whsec_")
    assert len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) == 32
    assert own_secret(engine, "demo") == secret
    assert own_secret(engine, "other") != secret


def test_all_that_make_a_secret_at_once_read_the_same_one(engine: Engine) -> None:
    assert len(set(race(lambda: own_secret(engine, "demo")))) == 1


def test_rotations_at_once_each_give_a_secret_that_is_valid(engine: Engine) -> None:
    first = own_secret(engine, "demo")

    def rotated() -> str:
        with Session(engine) as session:
            return rotate(session, "demo", now=NOW, overlap=timedelta(hours=24))

    made = race(rotated)
    with Session(engine) as session:
        assert len(set(made)) == RACERS
        assert set(signing_secrets(session, "demo", now=NOW)) == {first, *made}
        assert signing_secret(session, "demo") in made
        assert signing_secrets(session, "demo", now=NOW + timedelta(hours=24)) == [signing_secret(session, "demo")]


def test_the_first_rotation_of_a_workspace_without_a_secret_makes_one(engine: Engine) -> None:
    with Session(engine) as session:
        secret = rotate(session, "demo", now=NOW, overlap=timedelta(hours=24))
    assert own_secret(engine, "demo") == secret


def test_losing_the_race_for_a_secret_keeps_what_the_transaction_did_before(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Session(engine) as session:
        session.add(new_delivery(id="d", workspace="demo", event_type="e", url="http://x", data={}, now=NOW))
        session.flush()
        real_nested = session.begin_nested

        def another_was_first() -> SessionTransaction:
            session.add(WebhookSecret(workspace="demo", secret="first", created_at=NOW))
            session.flush()
            return real_nested()

        monkeypatch.setattr(session, "begin_nested", another_was_first)
        assert signing_secret(session, "demo") == "first"
        session.commit()
    assert row(engine, "d").state == "pending"


def test_an_id_with_a_full_stop_is_replaced_by_one_without_the_same_each_time() -> None:
    def id_of(id_: str) -> str:
        return new_delivery(id=id_, workspace="w", event_type="e", url="http://x", data={}, now=NOW).id

    assert id_of("msg_b1_completed") == "msg_b1_completed"
    assert "." not in id_of("msg_b.1_completed")
    assert id_of("msg_b.1_completed") == id_of("msg_b.1_completed")
    assert id_of("msg_b.1_completed") != id_of("msg_b.2_completed")


def test_the_body_has_type_timestamp_and_data() -> None:
    delivery = new_delivery(
        id="d", workspace="w", event_type="batch.completed", url="http://x", data={"text": "a\x00é"}, now=NOW
    )
    assert json.loads(delivery.body) == {
        "type": "batch.completed",
        "timestamp": "2026-01-02T03:04:05Z",
        "data": {"text": "a\x00é"},
    }
    assert "\x00" not in delivery.body
