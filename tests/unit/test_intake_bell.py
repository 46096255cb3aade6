"""A message that a process puts in its queue is fetched by its own consumer at once, however long that was idle."""

from __future__ import annotations

import threading

import pytest
from dramatiq import Message
from dramatiq.common import compute_backoff

from worker import intake
from worker.intake import BoundedBroker


def test_an_idle_consumer_hears_of_a_message_of_its_own_process(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    paused = threading.Event()

    def for_ever(misses: int, **_: object) -> tuple[int, int]:
        paused.set()
        return compute_backoff(misses)[0], 3_600_000

    monkeypatch.setattr(intake, "compute_backoff", for_ever)
    broker = BoundedBroker(url=valkey_url, middleware=[], has_room={})
    broker.declare_queue("jobs")
    consumer = broker.consume("jobs", prefetch=1, timeout=3_600_000)
    found: list[object] = []

    def consume() -> None:
        while not found:
            found.extend(message for message in [next(consumer)] if message is not None)

    thread = threading.Thread(target=consume, daemon=True)
    thread.start()
    assert paused.wait(10)
    broker.enqueue(Message(queue_name="jobs", actor_name="a", args=(), kwargs={}, options={}))
    thread.join(10)
    assert len(found) == 1
