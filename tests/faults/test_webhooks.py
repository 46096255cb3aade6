"""Deliveries outlive the workers that send them."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import update
from sqlmodel import Session, select

from schemas.tables import Delivery
from tests.at_work import AT_HOME, Scene, Works
from tests.loopback_http import Asked, LoopbackHttp, Told
from tests.processes import until


def test_a_killed_worker_loses_no_delivery_neither_between_attempts_nor_within_one(
    tmp_path: Path, servers_dir: Path
) -> None:
    stay = threading.Event()
    tries: list[str] = []

    def answer(asked: Asked) -> Told:
        tries.append(asked.headers["webhook-id"])
        if len(tries) == 1:
            return Told(status=503)
        if len(tries) == 2:
            stay.wait(60)
        return Told()

    settings = {"ASSISTQ_PROCESSES": "1", "ASSISTQ_THREADS": "4"}
    with LoopbackHttp(answer) as receiver, Works(tmp_path, servers_dir=servers_dir, **settings) as works:
        scene = Scene(works, workspace=AT_HOME)
        scene.assistant()

        def delivery() -> Delivery | None:
            with Session(works.engine) as session:
                return session.exec(select(Delivery)).one_or_none()

        def due_now() -> None:
            """As if hours had passed: what waits is due, and the lease of a claim has ended."""
            now = datetime.now(UTC)
            with works.engine.begin() as connection:
                connection.execute(update(Delivery).values(next_attempt_at=now))
                connection.execute(
                    update(Delivery).where(Delivery.claimed_until.is_not(None)).values(claimed_until=now)  # type: ignore[union-attr]
                )

        batch = works.producer.enqueue_many([scene.job("hello")], webhook=receiver.url)
        batch.wait(timeout_s=60)
        until(lambda: (row := delivery()) is not None and row.last_status == 503, what="the first attempt failed")
        works.kill()
        due_now()
        works.start_again()
        until(lambda: len(tries) == 2, what="the second attempt is under way")
        works.kill()
        due_now()
        works.start_again()
        until(lambda: (row := delivery()) is not None and row.state == "delivered", what="it is delivered")
        stay.set()
        row = delivery()
        assert row is not None
        assert row.attempts == 3
        assert tries == [row.id] * 3
