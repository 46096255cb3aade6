"""The limiter that all workers share, in Redis, on the server's clock."""

from __future__ import annotations

import asyncio
import itertools
import time
import uuid
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from redis.asyncio import Redis

from schemas import names
from schemas.lane import Lane, LaneFault
from schemas.lane_limits import LaneLimits
from schemas.outcome import Code
from schemas.quota_told import QuotaTold
from worker.clock import Clock
from worker.errors import RedisAway, redis_away
from worker.events import Events, ServiceFault
from worker.insist import insist
from worker.limits.base import Answer, Granted, Later, Stopped, TooLarge
from worker.limits.turns import Reply, Turns, channel

# A call that was not ended after this long no longer counts as in flight; longer than a call should ever take.
HOLD_S = 900.0
_RETRY_S = 1.0
# One wait for a message; shorter than the client's socket time-out.
_LISTEN_S = 10.0
_CLOSE_WITHIN_S = 2.0


class RedisLimiter:
    """Asks the scripts, sleeps exactly as long as they say, and is woken when a turn comes earlier."""

    def __init__(
        self,
        redis: Redis,
        *,
        limits_of: Callable[[Lane], LaneLimits],
        clock: Clock,
        process: str,
        events: Events,
        hold_s: float = HOLD_S,
    ) -> None:
        """Limit each lane as `limits_of` says; `process` is this worker's name among the live ones (aq:workers)."""
        self._redis = redis
        self._limits_of = limits_of
        self._clock = clock
        self._process = process
        self._events = events
        self._turns = Turns(redis, process=process, hold_s=hold_s)
        self._run_id = uuid.uuid4().hex[:8]
        self._numbers = itertools.count()
        # Who waits here, by ticket: done when its turn came early.
        self._waiters: dict[str, asyncio.Future[None]] = {}
        self._errands: set[asyncio.Task[None]] = set()

    async def reserve(self, lane: Lane, *, tokens: int, owner: str) -> Answer:
        """Wait for the turn of one request of `tokens` tokens."""
        if self._clock.stopping:
            return Stopped()
        ticket = f"{owner}.{self._run_id}.{next(self._numbers)}"
        try:
            return await self._await_turn(lane, ticket, tokens=tokens, owner=owner)
        except (asyncio.CancelledError, RedisAway):
            # Redis may have taken the question, and its answer got lost.
            self._give_back_soon(lane, ticket)
            raise
        finally:
            self._waiters.pop(ticket, None)

    async def _await_turn(self, lane: Lane, ticket: str, *, tokens: int, owner: str) -> Answer:
        limits = self._limits_of(lane)
        began_s: float | None = None
        while True:
            # Before the question, so that no word can come too early.
            word = self._waiters[ticket] = asyncio.get_running_loop().create_future()
            asked_s = time.monotonic()
            asked = await self._turns.ask(lane, limits, ticket=ticket, tokens=tokens, owner=owner)
            match asked.reply:
                case Reply.GRANTED:
                    now_s = time.monotonic()
                    waited_s = 0.0 if began_s is None else now_s - began_s
                    return Granted(id=ticket, tokens=tokens, waited_s=waited_s, late_s=now_s - asked_s)
                case Reply.TOO_LARGE:
                    return TooLarge(limit_tokens=asked.amount)
                case Reply.LATER:
                    return Later(wait_s=asked.wait_s)
                case Reply.WAIT:
                    began_s = time.monotonic() if began_s is None else began_s
                    if not await self._clock.nap(word, seconds=asked.wait_s):
                        self._give_back_soon(lane, ticket)
                        return Stopped()

    async def settle(self, lane: Lane, grant: Granted, *, used_tokens: int, fault_over: bool = True) -> None:
        """Correct the reservation to what was used."""
        await insist(
            lambda: self._turns.settle(
                lane, grant.id, used_tokens=used_tokens, late_s=grant.late_s, fault_over=fault_over
            ),
            what="a settlement of the limiter",
            events=self._events,
        )

    async def cancel(self, lane: Lane, grant: Granted) -> None:
        """Give the request and its tokens back."""
        await self._give_back(lane, grant.id)

    async def cool_down(self, lane: Lane, *, delay_s: float) -> None:
        """Grant nothing of the lane for this long."""
        await self._turns.cool_down(lane, delay_s=delay_s)

    async def fault(self, lane: Lane, *, code: Code, reason: str) -> None:
        """Record why the lane stands still; a fault of the same code keeps its beginning."""
        # Two workers that write at once count one meeting less, which nobody decides by.
        with redis_away():
            raw = await self._redis.hget(names.FAULTS, lane.key)
        before = LaneFault.model_validate_json(raw) if raw else None
        same = before is not None and before.code is code
        fault = LaneFault(
            workspace=lane.workspace,
            code=code,
            reason=reason,
            since_ms=before.since_ms if same and before else int(time.time() * 1000),
            count=before.count + 1 if same and before else 1,
        )
        with redis_away():
            await self._redis.hset(names.FAULTS, lane.key, fault.model_dump_json())

    async def believe(self, lane: Lane, told: QuotaTold) -> None:
        """Ask the script only where the word could mean less than we grant."""
        limits = self._limits_of(lane)
        if _is_tight(told.limit_requests, told.remaining_requests, limits.rpm) or _is_tight(
            told.limit_tokens, told.remaining_tokens, limits.tpm
        ):
            await self._turns.believe(lane, limits, told)

    async def expire(self) -> int:
        """Free what dead processes left, of the lanes whose turn it is to be looked at."""
        return await self._turns.expire()

    async def listen_forever(self) -> None:
        """Wake those whose turn came earlier than they were told, until cancelled; without it they sleep on."""
        while True:
            try:
                with redis_away():
                    await self._wake_on_messages()
            except RedisAway as exc:
                self._events.emit(ServiceFault(part="redis", error=f"turns: {exc}"))
                await asyncio.sleep(_RETRY_S)

    async def aclose(self) -> None:
        """Wait a little for what was still to be given back."""
        if self._errands:
            _, late = await asyncio.wait(self._errands, timeout=_CLOSE_WITHIN_S)
            for errand in late:
                errand.cancel()

    async def _wake_on_messages(self) -> None:
        async with self._redis.pubsub(ignore_subscribe_messages=True) as listener:
            await listener.subscribe(channel(self._process))
            while True:
                message = await listener.get_message(timeout=_LISTEN_S)
                if message is not None:
                    word = self._waiters.get(message["data"].decode())
                    if word is not None and not word.done():
                        word.set_result(None)

    async def _give_back(self, lane: Lane, ticket: str) -> None:
        await insist(
            lambda: self._turns.give_back(lane, ticket), what="a reservation to give back", events=self._events
        )

    def _give_back_soon(self, lane: Lane, ticket: str) -> None:
        """Give up the place without holding up who leaves; what fails here expires by itself."""

        async def give_back() -> None:
            with suppress(RedisAway):
                await self._give_back(lane, ticket)

        self._run(give_back())

    def _run(self, errand: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(errand)
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)


def _is_tight(limit: float | None, remaining: float | None, ours: int) -> bool:
    """Return whether a limit is lower than ours, or less than a tenth of it remains."""
    most = ours if limit is None else limit
    return most < ours or (remaining is not None and remaining < most / 10)
