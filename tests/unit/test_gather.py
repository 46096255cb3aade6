"""Callers of one moment are served together, in order, and each hears only of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from worker.gather import Gathered

pytestmark = pytest.mark.anyio

DEADLINE_S = 5.0


class Work:
    """Answers each item with its double when it may; a negative one is refused."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.go = asyncio.Event()
        self.began = asyncio.Event()

    async def __call__(self, items: list[int]) -> Sequence[int | Exception]:
        self.groups.append(items)
        self.began.set()
        await self.go.wait()
        return [item * 2 if item >= 0 else ValueError(str(item)) for item in items]


async def test_those_of_one_moment_are_one_group_and_those_that_come_meanwhile_the_next() -> None:
    work = Work()
    gathered: Gathered[int, int] = Gathered(work, at_most=100)
    async with asyncio.timeout(DEADLINE_S):
        first = [asyncio.create_task(gathered.do(item)) for item in range(3)]
        await work.began.wait()
        second = [asyncio.create_task(gathered.do(item)) for item in range(3, 6)]
        await asyncio.sleep(0)
        work.go.set()
        assert await asyncio.gather(*first, *second) == [0, 2, 4, 6, 8, 10]
    assert work.groups == [[0, 1, 2], [3, 4, 5]]


async def test_a_group_has_its_bound_and_no_more_of_them_are_at_work_than_may_be() -> None:
    work = Work()
    gathered: Gathered[int, int] = Gathered(work, at_most=2, at_once=2)
    async with asyncio.timeout(DEADLINE_S):
        asked = [asyncio.create_task(gathered.do(item)) for item in range(5)]
        await work.began.wait()
        await asyncio.sleep(0)
        assert work.groups == [[0, 1], [2, 3]]
        work.go.set()
        assert await asyncio.gather(*asked) == [0, 2, 4, 6, 8]
    assert work.groups == [[0, 1], [2, 3], [4]]


async def test_who_asks_again_as_soon_as_it_is_answered_is_served() -> None:
    work = Work()
    work.go.set()
    gathered: Gathered[int, int] = Gathered(work, at_most=10)
    async with asyncio.timeout(DEADLINE_S):
        for item in range(5):
            assert await gathered.do(item) == item * 2


async def test_a_refusal_is_one_callers_alone() -> None:
    work = Work()
    work.go.set()
    gathered: Gathered[int, int] = Gathered(work, at_most=10)
    async with asyncio.timeout(DEADLINE_S):
        answers = await asyncio.gather(*(gathered.do(item) for item in (1, -2, 3)), return_exceptions=True)
    assert [answers[0], answers[2]] == [2, 6]
    assert isinstance(answers[1], ValueError)
    assert len(work.groups) == 1


async def test_what_the_work_raises_is_everyones_and_the_next_group_is_done() -> None:
    raised: list[Exception] = [RuntimeError("boom")]

    async def work(items: list[int]) -> Sequence[int | Exception]:
        if raised:
            raise raised.pop()
        return items

    gathered: Gathered[int, int] = Gathered(work, at_most=10)
    async with asyncio.timeout(DEADLINE_S):
        first = await asyncio.gather(gathered.do(1), gathered.do(2), return_exceptions=True)
        assert [type(each) for each in first] == [RuntimeError, RuntimeError]
        assert await gathered.do(3) == 3


async def test_a_caller_that_is_cancelled_while_it_waits_takes_its_item_back() -> None:
    work = Work()
    gathered: Gathered[int, int] = Gathered(work, at_most=10)
    async with asyncio.timeout(DEADLINE_S):
        first = asyncio.create_task(gathered.do(1))
        await work.began.wait()
        lost, kept = (asyncio.create_task(gathered.do(item)) for item in (2, 3))
        await asyncio.sleep(0)
        lost.cancel()
        work.go.set()
        assert (await first, await kept) == (2, 6)
    assert lost.cancelled()
    assert work.groups == [[1], [3]]
