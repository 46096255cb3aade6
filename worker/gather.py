"""Does the work of concurrent callers together: what gathers while one group is at work is the next group."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Done = TypeVar("Done")


class Gathered(Generic[Item, Done]):
    """Hands items over in groups, in the order of asking; bound to one event loop.

    Nothing waits for company: a group is what has come in the same moment, or while the
    groups before it were at work.
    """

    def __init__(
        self, work: Callable[[list[Item]], Awaitable[Sequence[Done | Exception]]], *, at_most: int, at_once: int = 1
    ) -> None:
        """Do groups of up to `at_most` items, `at_once` groups at a time.

        `work` returns an answer for each item, in order; an exception is that item's alone.
        What it raises is everyone's.
        """
        self._work = work
        self._at_most = at_most
        self._at_once = at_once
        self._waiting: deque[tuple[Item, asyncio.Future[Done]]] = deque()
        self._working = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def do(self, item: Item) -> Done:
        """Have the item done and return its answer; raises what became of it instead.

        A caller that is cancelled before its group's turn takes the item back.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Done] = loop.create_future()
        self._waiting.append((item, answer))
        if self._working < self._at_once:
            self._working += 1
            # It begins after whatever else is ready now, which so travels with it.
            task = loop.create_task(self._work_off())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await answer

    async def _work_off(self) -> None:
        try:
            while group := self._next_group():
                await self._work_on(group)
        finally:
            # Before anybody who was answered asks again, which no callback of the task is.
            self._working -= 1

    async def _work_on(self, group: list[tuple[Item, asyncio.Future[Done]]]) -> None:
        try:
            answers = await self._work([item for item, _ in group])
        except asyncio.CancelledError:
            for _, answer in group:
                answer.cancel()
            raise
        except Exception as exc:  # noqa: BLE001 - it is handed on, to each
            answers = [exc] * len(group)
        for (_, answer), done in zip(group, answers, strict=True):
            if answer.done():
                continue
            if isinstance(done, Exception):
                answer.set_exception(done)
            else:
                answer.set_result(done)

    def _next_group(self) -> list[tuple[Item, asyncio.Future[Done]]]:
        group: list[tuple[Item, asyncio.Future[Done]]] = []
        while self._waiting and len(group) < self._at_most:
            waiting = self._waiting.popleft()
            if not waiting[1].done():
                group.append(waiting)
        return group
