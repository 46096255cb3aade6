"""One process runs so many at once and no more, fetches none that it cannot run, and ends in time."""

from __future__ import annotations

import asyncio

import pytest
from dramatiq import Consumer, MessageProxy

from worker.actors import HINTS_AT_MOST, declare, hints_together
from worker.in_flight import InFlight
from worker.intake import BoundedBroker
from worker.queue.queue import Hint

pytestmark = pytest.mark.anyio

DEADLINE_S = 5.0


class Runs:
    """Runs that end when they are told to."""

    def __init__(self, capacity: int) -> None:
        self.go = asyncio.Event()
        self.began: list[int] = []
        self.crashed: list[tuple[int, Exception]] = []
        self.in_flight: InFlight[int] = InFlight(
            self._run,
            capacity=capacity,
            on_crash=lambda item, error: self.crashed.append((item, error)),
            loop=asyncio.get_running_loop(),
        )

    async def _run(self, item: int) -> None:
        self.began.append(item)
        if item < 0:
            raise ValueError(item)
        await self.go.wait()


async def settle() -> None:
    """Let every task come to its next wait."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_no_more_run_at_once_than_there_are_places_and_the_rest_wait() -> None:
    runs = Runs(capacity=2)
    runs.in_flight.take([1, 2, 3])
    await settle()
    assert runs.began == [1, 2]
    runs.go.set()
    await runs.in_flight.ended(within_s=DEADLINE_S)
    assert runs.began == [1, 2, 3]


async def test_there_is_room_only_while_a_place_is_free() -> None:
    runs = Runs(capacity=2)
    assert runs.in_flight.has_room(0)
    runs.in_flight.take([1, 2])
    assert not runs.in_flight.has_room(0)
    await settle()
    waits = asyncio.create_task(asyncio.to_thread(runs.in_flight.has_room, DEADLINE_S))
    runs.go.set()
    assert await waits


async def test_at_a_shutdown_what_has_not_ended_in_time_is_cancelled() -> None:
    runs = Runs(capacity=2)
    runs.in_flight.take([1, 2, 3])
    await settle()
    async with asyncio.timeout(DEADLINE_S):
        await runs.in_flight.ended(within_s=0)
    assert runs.in_flight.has_room(0)
    assert not runs.crashed


async def test_a_crash_is_told_and_frees_its_place() -> None:
    runs = Runs(capacity=1)
    runs.in_flight.take([-1, 2])
    await settle()
    assert [(item, type(error)) for item, error in runs.crashed] == [(-1, ValueError)]
    assert runs.began == [-1, 2]
    runs.go.set()
    await runs.in_flight.ended(within_s=DEADLINE_S)


class TestMessages:
    """On a real Valkey: what is in a message, and which process fetches it."""

    @pytest.fixture
    def room(self) -> list[bool]:
        return [True]

    @pytest.fixture
    def broker(self, valkey_url: str, room: list[bool]) -> BoundedBroker:
        return BoundedBroker(url=valkey_url, middleware=[], has_room={"jobs": lambda _timeout_s: room[0]})

    @pytest.fixture
    def taken(self) -> list[Hint]:
        return []

    def next_message(self, consumer: Consumer) -> MessageProxy | None:
        for _ in range(3):
            message = next(consumer)
            if message is not None:
                return message
        return None

    async def test_a_message_carries_several_hints_and_an_old_one_of_a_single_hint_is_understood(
        self, broker: BoundedBroker, taken: list[Hint]
    ) -> None:
        actors = declare(broker, take_jobs=taken.extend, take_deliveries=lambda _ids: None)
        hints = [Hint(f"j{number}", number) for number in range(5)]
        actors.send_jobs(hints, together=2)
        broker.enqueue(actors.run_job.message("old", 7))
        consumer = broker.consume("jobs", prefetch=10, timeout=10)
        sizes = []
        for _ in range(4):
            message = self.next_message(consumer)
            assert message is not None
            sizes.append(len(message.args))
            actors.run_job(*message.args)
            consumer.ack(message)
        assert sizes == [4, 4, 2, 2]
        assert taken == [*hints, Hint("old", 7)]

    async def test_a_process_without_room_leaves_messages_to_others(
        self, broker: BoundedBroker, room: list[bool], taken: list[Hint]
    ) -> None:
        actors = declare(broker, take_jobs=taken.extend, take_deliveries=lambda _ids: None)
        actors.send_jobs([Hint("j", 1)])
        actors.send_deliveries(["d"])
        room[0] = False
        consumer = broker.consume("jobs", prefetch=1, timeout=10)
        assert self.next_message(consumer) is None
        assert self.next_message(broker.consume("webhooks", prefetch=1, timeout=10)) is not None
        room[0] = True
        assert self.next_message(consumer) is not None

    @pytest.mark.parametrize(("capacity", "together"), [(1, 1), (8, 1), (64, 2), (256, 8), (4096, HINTS_AT_MOST)])
    async def test_only_processes_that_run_many_jobs_get_many_hints_at_once(self, capacity: int, together: int) -> None:
        assert hints_together(capacity) == together
