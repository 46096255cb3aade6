"""A lane of the real scripts on a real server, whose clock the test moves, with waiters as the limiter has them.

Every grant is audited when its owner hears of it, for that is when the call would be sent.
"""

from __future__ import annotations

import itertools
import struct
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Self

import pytest
from redis.asyncio import Redis

from schemas import names
from schemas.lane import Lane
from schemas.lane_limits import LaneLimits
from tests.given import text
from worker.limits import turns
from worker.limits.turns import JITTER_S, Asked, Reply, Turns

CLOCK = "test:clock_us"
MINUTE_US = 60_000_000
HOLD_S = 100.0
_REAL_CLOCK = """  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
"""
_lanes = (Lane("acme", "provider", f"m{number}") for number in itertools.count())
_numbers_of_calls = itertools.count()


def move_clock_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the scripts read the time from a key; what they do with it stays as it is."""
    real_source = turns.source

    def source(name: str) -> str:
        script = real_source(name)
        assert script.count(_REAL_CLOCK) == 1
        return script.replace(_REAL_CLOCK, f"  return tonumber(redis.call('GET', '{CLOCK}'))\n")

    monkeypatch.setattr(turns, "source", source)


@dataclass(eq=False)
class Call:
    """A question for a turn, and what became of it; `at_us` is when its owner heard that it was granted."""

    number: int
    tokens: int
    process: str
    due_us: int = 0
    at_us: int | None = None
    used: int | None = None

    @property
    def ticket(self) -> str:
        """Return the id of the question."""
        return f"job.{self.number}"

    @property
    def counted(self) -> int:
        """Return the tokens that the provider counts, as far as they were foreseen."""
        return self.tokens if self.used is None else min(self.used, self.tokens)


@dataclass
class SimulatedLane:
    """Many processes' waiters on one lane."""

    redis: Redis
    limits: LaneLimits
    processes: tuple[str, ...] = ("p1", "p2", "p3")
    loses_messages: bool = False
    lane: Lane = field(default_factory=lambda: next(_lanes))
    # Logical time: what really passes. The server's clock may differ from it.
    now_us: int = 1_800_000_000_000_000
    behind_us: int = 0
    waiting: list[Call] = field(default_factory=list)
    granted: list[Call] = field(default_factory=list)
    asked: int = 0

    async def __aenter__(self) -> Self:
        """Set the clock, and let all processes be alive."""
        self.turns = {process: Turns(self.redis, process=process, hold_s=HOLD_S) for process in self.processes}
        await self.redis.flushall()
        self._minute: deque[Call] = deque()
        self._began_us = self.now_us
        self._beaten_us = 0
        self._ears = self.redis.pubsub(ignore_subscribe_messages=True)
        await self._ears.subscribe(*(turns.channel(process) for process in self.processes))
        await self._set_clock()
        return self

    async def __aexit__(self, *raised: object) -> None:
        """Stop listening."""
        await self._ears.aclose()

    async def ask(self, tokens: int, *, process: str | None = None) -> Asked:
        """Ask for a turn; who has to wait is kept among the waiting."""
        process = process or next(iter(self.turns))
        call = Call(next(_numbers_of_calls), tokens, process)
        answer = await self._ask(call)
        if answer.reply is Reply.WAIT:
            self.waiting.append(call)
        await self._hear()
        return answer

    async def _ask(self, call: Call) -> Asked:
        self.asked += 1
        answer = await self.turns[call.process].ask(
            self.lane, self.limits, ticket=call.ticket, tokens=call.tokens, owner="job"
        )
        if answer.reply is Reply.GRANTED:
            call.at_us = self.now_us
            self.granted.append(call)
            self._minute.append(call)
            self._audit(call)
        else:
            assert answer.amount > 0, "who is told to ask at once would do nothing else"
            call.due_us = self.now_us + answer.amount
        return answer

    async def settle(self, call: Call, used: int) -> bool:
        """Settle a call that was granted."""
        done = await self.turns[call.process].settle(self.lane, call.ticket, used_tokens=used, fault_over=True)
        if done:
            call.used = used
        await self._hear()
        return done

    async def cancel(self, call: Call) -> bool:
        """Give back a ticket or a grant."""
        done = await self.turns[call.process].give_back(self.lane, call.ticket)
        self._gone(call)
        await self._hear()
        return done

    async def cool_down(self, delay_s: float) -> None:
        """Cool the lane down."""
        await next(iter(self.turns.values())).cool_down(self.lane, delay_s=delay_s)

    async def kill(self, process: str) -> None:
        """End a process without a word; what it had in flight stays counted."""
        del self.turns[process]
        for call in [call for call in self.waiting if call.process == process]:
            self.waiting.remove(call)

    def set_clock_back(self, seconds: float) -> None:
        """Set the server's clock back; what really passes goes on."""
        self.behind_us += round(seconds * 1e6)

    async def pass_time(self, seconds: float, *, sweeps: bool = True) -> None:
        """Let time pass; each waiter asks when it was told to."""
        until_us = self.now_us + round(seconds * 1e6)
        while True:
            call = min(self.waiting, key=lambda call: call.due_us, default=None)
            next_us = min(until_us, until_us if call is None else call.due_us)
            # At least once a second, as the workers do.
            next_us = min(next_us, self.now_us + 1_000_000)
            self.now_us = max(self.now_us, next_us)
            await self._set_clock()
            if sweeps:
                await self._sweep()
            if call is not None and call in self.waiting and call.due_us <= self.now_us:
                await self._ask_again(call)
            elif self.now_us >= until_us:
                return

    async def _ask_again(self, call: Call) -> None:
        answer = await self._ask(call)
        if answer.reply is not Reply.WAIT:
            self.waiting.remove(call)
        await self._hear()

    async def _sweep(self) -> None:
        if self.now_us - self._beaten_us < 1_000_000:
            return
        self._beaten_us = self.now_us
        expires_ms = (self.now_us - self.behind_us) // 1000 + 8000
        await self.redis.hset(names.WORKERS, mapping=dict.fromkeys(self.turns, f"4 {expires_ms}"))
        await next(iter(self.turns.values())).expire()
        await self._hear()

    async def _hear(self) -> None:
        """Let those confirm who are told that their turn came early."""
        # What was published until now stands before the answer.
        await self._ears.ping()
        while True:
            message = await self._ears.get_message(timeout=None)
            if message is None:
                continue  # that it subscribed
            if message["type"] == "pong":
                return
            ticket = text(message["data"])
            call = next((call for call in self.waiting if call.ticket == ticket), None)
            if call is not None and not self.loses_messages:
                await self._ask_again(call)

    def _gone(self, call: Call) -> None:
        for calls in (self.waiting, self.granted, self._minute):
            if call in calls:
                calls.remove(call)

    async def _set_clock(self) -> None:
        await self.redis.set(CLOCK, self.now_us - self.behind_us)

    def _audit(self, newest: Call) -> None:
        while (self._minute[0].at_us or 0) <= self.now_us - MINUTE_US:
            self._minute.popleft()
        if self.limits.shape != "bucket":
            assert len(self._minute) <= self.limits.usable_rpm
            assert sum(call.counted for call in self._minute) <= self.limits.usable_tpm
        if self.limits.shape != "window":
            self._audit_pace(newest)

    def _audit_pace(self, newest: Call) -> None:
        """No stretch of time holds more than what a full bucket has, or one call, and what flows back meanwhile."""
        requests, tokens = 0, 0
        for call in reversed(self._minute):
            requests, tokens = requests + 1, tokens + call.counted
            assert call.at_us is not None
            flowed_s = (self.now_us - call.at_us) / 1e6 + JITTER_S
            burst_s = max(0.0, self.limits.burst_s - JITTER_S)
            rps, tps = self.limits.usable_rpm / 60, self.limits.usable_tpm / 60
            assert requests <= max(burst_s * rps, 1) + flowed_s * rps + 0.001
            assert tokens <= max(burst_s * tps, newest.counted) + flowed_s * tps + 1

    async def books(self) -> Books:
        """Return what Redis holds of the lane."""
        key = self.lane.key
        state: Any = await self.redis.hget(names.limit(key), "state")
        records = await self.redis.hgetall(f"aq:held:{key}")
        return Books(
            state=struct.unpack("<17d", state) if state else (0.0,) * 17,
            cells=[_numbers(cell) for cell in await self.redis.lrange(f"aq:cells:{key}", 0, -1)],
            tickets=[text(ticket) for ticket in await self.redis.lrange(f"aq:tickets:{key}", 0, -1)],
            held={text(ticket): text(record).split() for ticket, record in records.items()},
        )

    async def check_books(self) -> None:
        """Check that the sums are those of what they sum, and that it is what really happened."""
        books = await self.books()
        assert books.requests == sum(cell[1] for cell in books.cells)
        assert books.tokens == sum(cell[2] for cell in books.cells)
        waiting = {ticket: record for ticket, record in books.held.items() if record[0] == "waiting"}
        assert books.waiting == len(books.tickets) == len(waiting)
        assert sorted(books.tickets) == sorted(f"{record[1]} {ticket}" for ticket, record in waiting.items())
        assert books.waiting_tokens == sum(int(record[1]) for record in waiting.values())
        if not self.loses_messages and self.granted:
            # First come, first served.
            newest = max(call.number for call in self.granted)
            assert all(int(ticket.rpartition(".")[2]) > newest for ticket in books.tickets)
        if self.now_us - self._began_us < MINUTE_US:
            # Nothing has left the ledger yet.
            unheard = [int(record[1]) for record in books.held.values() if record[0] == "granted"]
            assert books.requests == len(self.granted) + len(unheard)
            used = sum(call.tokens if call.used is None else call.used for call in self.granted)
            assert books.tokens == used + sum(unheard)


@dataclass(frozen=True)
class Books:
    """What Redis holds of a lane; the places of `state` are those of turns.lua."""

    state: tuple[float, ...]
    cells: list[tuple[int, ...]]
    tickets: list[str]
    held: dict[str, list[str]]

    @property
    def requests(self) -> float:
        """Return the sum of the window's requests."""
        return self.state[4]

    @property
    def tokens(self) -> float:
        """Return the sum of the window's tokens."""
        return self.state[5]

    @property
    def waiting(self) -> float:
        """Return how many wait."""
        return self.state[10]

    @property
    def waiting_tokens(self) -> float:
        """Return the tokens of those who wait."""
        return self.state[11]

    @property
    def in_flight(self) -> int:
        """Return how many were granted and have not ended."""
        return len(self.held) - len(self.tickets)


def _numbers(cell: Any) -> tuple[int, ...]:
    return tuple(int(part) for part in text(cell).split())
