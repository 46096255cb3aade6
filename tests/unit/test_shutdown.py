"""A cancellation that meets a wake-up still ends the loop: else a shutdown would wait for ever."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from worker.admission.admission import Admission
from worker.admission.releases import Released
from worker.clock import Clock, end
from worker.events import Events

DEADLINE_S = 5.0


class IdleReleases:
    """Releases nothing, and tells when it was asked."""

    def __init__(self) -> None:
        self.looked = asyncio.Event()

    async def release(self, limit: int) -> Released:
        self.looked.set()
        return Released(hints=[], look_again_s=None)


async def send_nothing(hints: list[Any]) -> None:
    raise AssertionError(f"there was nothing to send, and yet {hints}")


async def ends(task: asyncio.Task[Any]) -> bool:
    done, _ = await asyncio.wait([task], timeout=DEADLINE_S)
    return bool(done)


async def asleep() -> None:
    """Let every other task come to its next wait."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_admission_ends_when_it_is_cancelled_in_the_moment_of_a_wake_up() -> None:
    async def scenario() -> None:
        releases = IdleReleases()
        admission = Admission(
            process="p",
            capacity=1,
            queue=cast("Any", None),
            releases=cast("Any", releases),
            redis=cast("Any", None),
            send=send_nothing,
            events=Events(),
        )
        task = asyncio.create_task(admission.release_forever())
        async with asyncio.timeout(DEADLINE_S):
            await releases.looked.wait()
        await asleep()
        admission.wake()
        task.cancel()
        assert await ends(task)
        assert task.cancelled()

    asyncio.run(scenario())


def test_a_sleep_that_is_cancelled_in_the_moment_of_a_shutdown_is_cancelled() -> None:
    async def scenario() -> None:
        clock = Clock()
        task = asyncio.create_task(clock.sleep(60))
        await asleep()
        clock.stop()
        task.cancel()
        assert await ends(task)
        assert task.cancelled()

    asyncio.run(scenario())


def test_loops_that_swallow_a_cancellation_are_ended_all_the_same() -> None:
    async def scenario() -> None:
        swallowed = 0

        async def stubborn() -> None:
            nonlocal swallowed
            while True:
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    swallowed += 1
                    if swallowed == 3:
                        raise

        async def broken() -> None:
            raise RuntimeError("ended before")

        tasks = [asyncio.create_task(loop) for loop in (stubborn(), broken())]
        await asleep()
        async with asyncio.timeout(DEADLINE_S):
            await end(tasks)
        assert swallowed == 3
        assert all(task.done() for task in tasks)

    asyncio.run(scenario())


@pytest.mark.parametrize(("seconds", "whole"), [(0.01, True), (60.0, False)])
def test_a_sleep_tells_whether_it_was_slept_to_its_end(seconds: float, whole: bool) -> None:
    async def scenario() -> bool:
        clock = Clock()
        task = asyncio.create_task(clock.sleep(seconds))
        await asleep()
        if not whole:
            clock.stop()
        assert await ends(task)
        return task.result()

    assert asyncio.run(scenario()) is whole
