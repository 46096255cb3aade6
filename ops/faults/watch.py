"""Watches the parts' processes: which there are, when each was seen last; and the queue: when it was away."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from ops.faults.facts import now_s
from ops.faults.lives import Lives, Span
from ops.faults.parts import Part, parent_of, processes, session_of

_ASK_WITHIN_S = 0.3


class Watch:
    """What was seen of the parts, for `Lives`."""

    def __init__(self, parts: Iterable[Part], *, redis_url: str) -> None:
        """Watch these parts."""
        self._parts = list(parts)
        self._queue = redis.Redis.from_url(
            redis_url,
            socket_timeout=_ASK_WITHIN_S,
            socket_connect_timeout=_ASK_WITHIN_S,
            retry=Retry(NoBackoff(), 0),
        )
        # process -> the part that it is of, and when it was last seen alive
        self._alive: dict[int, tuple[Part, float]] = {}
        self._deaths: dict[int, Span] = {}
        self._stops: dict[int, list[Span]] = defaultdict(list)
        self._stopped: dict[int, float] = {}
        self._away: list[Span] = []
        self._away_since_s: float | None = None

    def look(self) -> None:
        """Note who is there and who is gone."""
        began_s = now_s()
        of_session = {session: part for part in self._parts for session in part.sessions}
        seen = {
            pid: part
            for pid in processes()
            if (part := of_session.get(session_of(pid) or 0)) is not None and parent_of(pid) is not None
        }
        for pid in self._alive.keys() - seen.keys():
            self._deaths[pid] = Span(self._alive.pop(pid)[1], now_s())
            self.goes_on(pid)
        for pid, part in seen.items():
            self._alive[pid] = (part, began_s)
        self._look_at_queue()

    def processes_of(self, part: Part) -> list[int]:
        """Return the processes of a part that were seen last, the oldest first."""
        return sorted(pid for pid, (of, _) in self._alive.items() if of is part)

    def children_of(self, part: Part) -> list[int]:
        """Return the children of the process that was started for the part, wherever their sessions are."""
        return [pid for pid in processes() if part.pid is not None and parent_of(pid) == part.pid]

    def is_stopped(self, pid: int) -> None:
        """Note that a process is being stopped."""
        self._stopped.setdefault(pid, now_s())

    def goes_on(self, pid: int) -> None:
        """Note that a process goes on, or ended while it was stopped."""
        since_s = self._stopped.pop(pid, None)
        if since_s is not None:
            self._stops[pid].append(Span(since_s, now_s()))

    def queue_goes_away(self) -> None:
        """Note that the queue is about to be away; until it answers."""
        if self._away_since_s is None:
            self._away_since_s = now_s()

    def lives(self) -> Lives:
        """Return what was seen."""
        return Lives(deaths=dict(self._deaths), stops=dict(self._stops), queue_away=tuple(self._away))

    def _look_at_queue(self) -> None:
        if self._away_since_s is None:
            return
        with suppress(redis.RedisError):
            self._queue.ping()
            self._away.append(Span(self._away_since_s, now_s()))
            self._away_since_s = None
