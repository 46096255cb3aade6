"""Which process was disturbed when: what explains that something was done again. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ops.faults.facts import Exchange

# A reply that was sent whole is in the journal within this long, if nothing is in its way.
JOURNALED_WITHIN_S = 1.5
# A worker finds its queue again within this long after it was away (worker/insist.py pauses for up to 2 s).
FOUND_AGAIN_WITHIN_S = 2.5
# What a stopped worker was about to send, it sends within this long after it goes on.
REVIVED_WITHIN_S = 2.0


@dataclass(frozen=True, slots=True)
class Span:
    """From when to when something was so, as nearly as it could be told; its true bounds lie within."""

    begin_s: float
    end_s: float

    def meets(self, begin_s: float, end_s: float) -> bool:
        """Return whether both have a moment in common."""
        return self.begin_s <= end_s and begin_s <= self.end_s


@dataclass(frozen=True, slots=True)
class Lives:
    """Processes by id: when they died (a span within which they did), when they were stopped; and the queue's absences.

    Server processes are among them: provider, tools.
    """

    deaths: Mapping[int, Span] = field(default_factory=dict)
    stops: Mapping[int, Sequence[Span]] = field(default_factory=dict)
    queue_away: Sequence[Span] = ()

    def disturbance_of(self, exchange: Exchange, *, in_flight: bool = False) -> str | None:
        """Return what befell the exchange between its arrival and the journal, in a word; None if nothing did.

        With `in_flight` only what befell it before its reply had left.
        """
        if exchange.fate == "cut":
            return "reply cut"
        died = self.deaths.get(exchange.server_pid)
        if exchange.fate == "unknown" and died is not None and died.end_s >= exchange.arrived_s:
            return "server killed"
        begin_s, end_s = exchange.arrived_s, self.journaled_by_s(exchange)
        if in_flight and exchange.ended_s is not None:
            end_s = exchange.ended_s
        if exchange.pid is None:
            # It was gone before anybody could look whose connection it was.
            return "caller gone" if self._anybody_died(begin_s, end_s) else None
        died = self.deaths.get(exchange.pid)
        if died is not None and died.meets(begin_s, end_s):
            return "worker killed"
        if any(stop.meets(begin_s, end_s) for stop in self.stops.get(exchange.pid, ())):
            return "worker stopped"
        return None

    def by_a_revived_worker(self, exchange: Exchange) -> bool:
        """Return whether it was sent by a worker that had just been stopped for longer than its lease.

        One that hung up before anybody could look, as a worker does that finds its lease lost, may be any of them.
        """
        known = self.stops if exchange.pid is None and exchange.fate == "gone" else {exchange.pid}
        stops = [stop for pid, stopped in self.stops.items() if pid in known for stop in stopped]
        return any(stop.begin_s <= exchange.arrived_s <= stop.end_s + REVIVED_WITHIN_S for stop in stops)

    def journaled_by_s(self, exchange: Exchange) -> float:
        """Return by when the reply stands in the journal, if its worker lives."""
        by_s = (exchange.arrived_s if exchange.ended_s is None else exchange.ended_s) + JOURNALED_WITHIN_S
        for away in sorted(self.queue_away, key=lambda span: span.begin_s):
            if away.meets(exchange.arrived_s, by_s):
                by_s = max(by_s, away.end_s + FOUND_AGAIN_WITHIN_S + JOURNALED_WITHIN_S)
        return by_s

    def _anybody_died(self, begin_s: float, end_s: float) -> bool:
        return any(span.meets(begin_s, end_s) for span in self.deaths.values())
