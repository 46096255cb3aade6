"""`assistq webhooks`: looking at deliveries and endpoints, sending again, rotating secrets."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Engine
from sqlmodel import Session
from standardwebhooks import Webhook

from schemas.database import engine_for, ensure_tables
from schemas.tables import Delivery
from tests.command_line import Ended, Installation
from tests.loopback_http import Asked, LoopbackHttp, Told
from tests.processes import until


def delivery(id_: str, **fields: Any) -> Delivery:
    now = datetime.now(UTC)
    row: dict[str, Any] = {"workspace": "demo", "event_type": "batch.completed", "url": "http://hooks.test/"}
    row |= {"body": '{"x": 1}', "state": "pending", "created_at": now, "next_attempt_at": now, **fields}
    return Delivery(id=id_, **row)


@contextmanager
def database(shell: Installation) -> Iterator[Engine]:
    engine = engine_for(shell.settings.effective_database_url)
    ensure_tables(engine)
    yield engine
    engine.dispose()


def add(engine: Engine, *deliveries: Delivery) -> None:
    with Session(engine) as session:
        session.add_all(deliveries)
        session.commit()


def row(engine: Engine, id_: str) -> Delivery:
    with Session(engine) as session:
        found = session.get(Delivery, id_)
        assert found is not None
        return found


def at_once(shell: Installation, *commands: tuple[str, ...]) -> list[Ended]:
    return [running.ended() for running in [shell.start("webhooks", *command) for command in commands]]


def test_an_endpoint_that_is_gone_is_disabled_until_a_person_enables_it_and_replays(shell: Installation) -> None:
    status = 410

    def answer(_: Asked) -> Told:
        return Told(b"moved out", status=status)

    with LoopbackHttp(answer) as receiver, database(shell) as engine:
        url = f"{receiver.url}/hook?a=1"
        add(engine, delivery("gone", url=url))
        up = shell.start("up")
        until(lambda: row(engine, "gone").state == "failed", what="it is told", timeout_s=60)
        add(engine, delivery("later", url=url))
        until(lambda: row(engine, "later").state == "failed", what="it ends unsent", timeout_s=60)
        assert "the endpoint is disabled since" in (row(engine, "later").last_error or "")
        assert (row(engine, "gone").attempts, row(engine, "later").attempts) == (1, 0)
        assert len(receiver.asked) == 1

        endpoints, shown, told = at_once(
            shell, ("endpoints", "--json"), ("show", "gone", "--json"), ("replay", "later")
        )
        (endpoint,) = endpoints.json
        assert (endpoint["workspace"], endpoint["url"], endpoint["state"]) == ("demo", url, "disabled")
        assert (shown.json["last_status"], shown.json["endpoint"]["state"]) == (410, "disabled")
        assert "1 deliveries are due again" in told.err
        assert f"is disabled (HTTP 410: moved out) and gets nothing: `assistq webhooks enable demo {url}`" in told.err
        until(lambda: row(engine, "later").state == "failed", what="it still is not sent", timeout_s=60)

        status = 200
        enabled = shell.run("webhooks", "enable", "demo", url)
        assert f"{url} was disabled and gets events again" in enabled.err
        replayed = shell.run("webhooks", "replay", "--failed")
        assert "2 deliveries are due again" in replayed.err
        for id_ in ("gone", "later"):
            until(lambda id_=id_: row(engine, id_).state == "delivered", what=f"{id_} is sent", timeout_s=60)  # type: ignore[misc]
        assert {asked.headers["webhook-id"] for asked in receiver.asked[1:]} == {"gone", "later"}
        up.process.send_signal(signal.SIGTERM)
        assert up.ended().code == 143


def test_what_the_commands_say_and_refuse(shell: Installation) -> None:
    now = datetime.now(UTC)
    with database(shell) as engine:
        add(
            engine,
            delivery("failed", state="failed", attempts=8, last_status=500, last_error="HTTP 500: \x1b[31mno"),
            delivery("done", state="delivered", attempts=1, delivered_at=now, batch_id="b1"),
            delivery("sent-now", attempts=1, claimed_until=now + timedelta(hours=1)),
        )
        listed, of_batch, in_state, shown = at_once(
            shell,
            ("list",),
            ("list", "--batch", "b1", "--json"),
            ("list", "--state", "failed", "--json"),
            ("show", "failed"),
        )
        assert "HTTP 500: \ufffd[31mno http://hooks.test/" in listed.out
        assert [each["id"] for each in of_batch.json] == ["done"]
        assert [each["id"] for each in in_state.json] == ["failed"]
        for part in ("attempts     8", "endpoint     healthy", 'body         {"x": 1}'):
            assert part in shown.out

        named, failed = at_once(shell, ("replay", "sent-now", "done"), ("replay", "--failed"))
        assert "sent-now is being sent at this moment: nothing was changed" in named.err
        assert "1 deliveries are due again" in named.err
        assert "1 deliveries are due again" in failed.err
        replayed = row(engine, "failed")
        # Eight attempts were made, and the schedule begins anew.
        assert (replayed.state, replayed.attempts, replayed.attempts_at_replay) == ("pending", 8, 8)
        assert row(engine, "done").delivered_at is None

        unknown, no_such, no_batch, no_workspace, healthy = at_once(
            shell,
            ("replay", "done", "nobody"),
            ("show", "nobody"),
            ("replay", "--batch", "b9"),
            ("rotate", "no/workspace"),
            ("enable", "demo", "http://hooks.test/"),
        )
        unknown.refused("delivery 'nobody' is not known")
        no_such.refused("delivery 'nobody' is not known", "assistq webhooks list")
        no_batch.refused("batch 'b9' has no deliveries")
        no_workspace.refused("'no/workspace' is no workspace")
        healthy.refused("nothing is held against the endpoint", "assistq webhooks endpoints")
        wrong = at_once(shell, ("replay",), ("replay", "done", "--failed"), ("rotate", "demo", "--overlap-hours", "-1"))
        assert [each.code for each in wrong] == [2, 2, 2]


def test_a_rotated_secret_signs_beside_the_one_before(shell: Installation) -> None:
    old = shell.run("webhooks", "secret", "demo").out.strip()
    rotated = shell.run("webhooks", "rotate", "demo", "--overlap-hours", "2")
    new = rotated.out.strip()
    assert "for 2 h" in rotated.err
    assert new != old
    assert shell.run("webhooks", "secret", "demo").out.strip() == new
    with LoopbackHttp(lambda _: Told()) as receiver:
        command = ("run", shell.reviews(2), "--assistant", shell.sentiment(), "--webhook", receiver.url)
        ended = shell.run(*command)
        assert "webhook delivered" in ended.err, ended.err
        (asked,) = receiver.asked
    for secret in (old, new):
        assert Webhook(secret).verify(asked.body, dict(asked.headers))["type"] == "batch.completed"


def test_a_subscription_is_made_changed_listed_and_removed(shell: Installation) -> None:
    url = "http://hooks.test/batches"
    with database(shell):
        for form in ("openai", "assistq"):
            (made,) = at_once(shell, ("subscribe", "demo", url, "--form", form))
            assert f"{url} is told of batches in the form of {form}" in made.err
        listed, of_others, wrong = at_once(
            shell,
            ("subscriptions", "--json"),
            ("subscriptions", "other", "--json"),
            ("subscribe", "demo", "ftp://hooks.test"),
        )
        assert [(each["workspace"], each["url"], each["form"]) for each in listed.json] == [("demo", url, "assistq")]
        assert of_others.json == []
        wrong.refused("is no address")
        (removed,) = at_once(shell, ("unsubscribe", "demo", url))
        assert f"{url} is told no more" in removed.err
        (again,) = at_once(shell, ("unsubscribe", "demo", url))
        again.refused("has no subscription", "assistq webhooks subscriptions")
