"""A message that a process puts in its queue is fetched by its own consumer at once, however long that was idle,
or as soon as it may fetch more.
"""

from __future__ import annotations

import threading

import pytest
from dramatiq import Consumer, Message, MessageProxy
from dramatiq.common import compute_backoff

from worker import intake
from worker.intake import BoundedBroker


@pytest.fixture
def paused(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Make every pause of a consumer end by its bell alone; return what is set when one begins."""
    paused = threading.Event()

    def for_ever(misses: int, **_: object) -> tuple[int, int]:
        paused.set()
        return compute_backoff(misses)[0], 3_600_000

    monkeypatch.setattr(intake, "compute_backoff", for_ever)
    return paused


def consuming(consumer: Consumer, found: list[MessageProxy], *, count: int) -> threading.Thread:
    def consume() -> None:
        while len(found) < count:
            found.extend(message for message in [next(consumer)] if message is not None)

    thread = threading.Thread(target=consume, daemon=True)
    thread.start()
    return thread


def test_an_idle_consumer_hears_of_a_message_of_its_own_process(valkey_url: str, paused: threading.Event) -> None:
    broker = BoundedBroker(url=valkey_url, middleware=[], has_room={})
    broker.declare_queue("jobs")
    found: list[MessageProxy] = []
    thread = consuming(broker.consume("jobs", prefetch=1, timeout=3_600_000), found, count=1)
    assert paused.wait(10)
    broker.enqueue(a_message())
    thread.join(10)
    assert len(found) == 1


def test_a_consumer_that_may_fetch_no_more_looks_again_once_one_of_its_messages_is_acknowledged(
    valkey_url: str, paused: threading.Event
) -> None:
    broker = BoundedBroker(url=valkey_url, middleware=[], has_room={})
    broker.declare_queue("jobs")
    for _ in range(3):
        broker.enqueue(a_message())
    consumer = broker.consume("jobs", prefetch=2, timeout=3_600_000)
    found: list[MessageProxy] = []
    thread = consuming(consumer, found, count=3)
    assert paused.wait(10)
    assert len(found) == 2
    consumer.ack(found[0])
    thread.join(10)
    assert len(found) == 3


def a_message() -> Message[object]:
    return Message(queue_name="jobs", actor_name="a", args=(), kwargs={}, options={})
