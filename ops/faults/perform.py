"""Does to the parts what the plan says, and tells what was met."""

from __future__ import annotations

import heapq
import signal
import time
from collections import Counter, defaultdict
from contextlib import suppress

import httpx
import psycopg
import redis

from ops.faults import plan
from ops.faults.facts import Log, now_s
from ops.faults.parts import Part, kill
from ops.faults.plan import Action, Disturbance
from ops.faults.stage import HOST
from ops.faults.system import System

_WITHIN_S = 2
_BETWEEN_TERMS_S = 0.3


class Performer:
    """Disturbs one system; `met` counts what was done, by part and action, `missed` what found nobody."""

    def __init__(self, system: System) -> None:
        """Begin with nothing done."""
        self._system = system
        self._log = Log(system.stage.log_of("disturbances"))
        self._to_go_on: list[tuple[float, int]] = []
        self.met: dict[str, Counter[Action]] = defaultdict(Counter)
        self.missed = 0

    def do(self, disturbance: Disturbance) -> None:
        """Do it; what is stopped goes on later, by `go_on`."""
        part = self._part_of(disturbance)
        began_s = now_s()
        met = self._act(part, disturbance)
        self._log.write(at_s=began_s, until_s=now_s(), part=part.name, action=disturbance.action, pids=met)
        if met:
            self.met[disturbance.part][disturbance.action] += 1
        else:
            self.missed += 1

    def go_on(self, *, all_of_them: bool = False) -> None:
        """Let go on what was stopped for long enough."""
        while self._to_go_on and (all_of_them or self._to_go_on[0][0] <= now_s()):
            _, pid = heapq.heappop(self._to_go_on)
            kill(pid, signal.SIGCONT)
            self._system.watch.goes_on(pid)

    @property
    def kills(self) -> int:
        """Return how many parts, or processes of parts, were ended."""
        return sum(count for done in self.met.values() for action, count in done.items() if action in plan.KILLS)

    def _part_of(self, disturbance: Disturbance) -> Part:
        system = self._system
        if disturbance.part == plan.WORKER:
            return system.workers[disturbance.number % len(system.workers)]
        parts = (system.queue, system.database, system.producer, system.provider, system.receiver, system.tools)
        return next(part for part in parts if part.name == disturbance.part)

    def _act(self, part: Part, disturbance: Disturbance) -> list[int]:
        """Return the processes that it was done to; for a cut, how many connections."""
        if part.pid is None:
            return []
        if part is self._system.queue:
            self._system.watch.queue_goes_away()
        match disturbance.action:
            case Action.KILL:
                part.stay_away(disturbance.for_s)
                return self._signal(part, signal.SIGKILL)
            case Action.TERM | Action.TERM_TWICE:
                return self._term(part, disturbance)
            case Action.KILL_CHILD:
                return [pid for pid in self._a_child(part, disturbance.number) if kill(pid, signal.SIGKILL)]
            case Action.STOP | Action.STOP_CHILD:
                return self._stop(self._to_stop(part, disturbance), disturbance.for_s)
            case Action.CUT | Action.CUT_REPLIES:
                return self._cut(part, disturbance.action)

    def _signal(self, part: Part, number: int) -> list[int]:
        pid = part.pid
        return [pid] if pid is not None and part.signal(number) else []

    def _term(self, part: Part, disturbance: Disturbance) -> list[int]:
        part.stay_away(disturbance.for_s)
        # PostgreSQL would wait for its clients.
        met = self._signal(part, signal.SIGINT if part is self._system.database else signal.SIGTERM)
        if disturbance.action is Action.TERM_TWICE:
            time.sleep(_BETWEEN_TERMS_S)
            self._signal(part, signal.SIGTERM)
        return met

    def _a_child(self, part: Part, number: int) -> list[int]:
        children = self._system.watch.children_of(part)
        return [children[number % len(children)]] if children else []

    def _to_stop(self, part: Part, disturbance: Disturbance) -> list[int]:
        if part.pid is None:
            return []
        if disturbance.action is Action.STOP_CHILD:
            return self._a_child(part, disturbance.number)
        return [part.pid, *self._system.watch.children_of(part)]

    def _stop(self, pids: list[int], for_s: float) -> list[int]:
        stopped = []
        for pid in pids:
            self._system.watch.is_stopped(pid)
            if kill(pid, signal.SIGSTOP):
                stopped.append(pid)
                heapq.heappush(self._to_go_on, (now_s() + for_s, pid))
            else:
                self._system.watch.goes_on(pid)
        return stopped

    def _cut(self, part: Part, action: Action) -> list[int]:
        if any(pid == part.pid for _, pid in self._to_go_on):
            return []
        with suppress(redis.RedisError, psycopg.Error, httpx.HTTPError):
            if part is self._system.queue:
                return [self._cut_queue()]
            if part is self._system.database:
                return [self._cut_database()]
            path = "cut" if action is Action.CUT else "cut-replies"
            url = f"http://{HOST}:{self._system.stage.provider_port}/{path}"
            return [int(httpx.post(url, timeout=_WITHIN_S, trust_env=False).json()["cut"])]
        return []

    def _cut_queue(self) -> int:
        url = self._system.stage.redis_url
        with redis.Redis.from_url(url, socket_timeout=_WITHIN_S, socket_connect_timeout=_WITHIN_S) as queue:
            kinds = ("normal", "pubsub")
            return sum(int(queue.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")) for kind in kinds)

    def _cut_database(self) -> int:
        with psycopg.connect(self._system.stage.database_url, connect_timeout=_WITHIN_S) as connection:
            cut = connection.execute(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            ).fetchone()
        return int(cut[0]) if cut else 0
