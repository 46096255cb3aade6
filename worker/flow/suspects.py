"""The one place in a process for a job that may be what killed its workers.

A process runs hundreds of jobs, and all of them die with it. Who would be failed by one death
more runs as the only such job of its process: then its last death is its own.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager

from schemas.outcome import Code, Snoozed
from worker.flow.decide import Random, is_suspect
from worker.queue.queue import Claimed

# How long a suspect waits that finds the place taken, and how many of them may come back in that time:
# many that ask at once would hold up the others of their lane.
COMES_BACK_S = 1.0
COME_BACK_AT_ONCE = 8


class Suspects:
    """Gives the place to one suspect at a time; bound to one event loop."""

    def __init__(self, *, max_kills: int, uniform: Random = random.uniform) -> None:
        """Take the deaths at which a job ends."""
        self._max_kills = max_kills
        self._uniform = uniform
        self._inside: str | None = None
        # Who was turned away, and when it comes back (monotonic).
        self._waiting: dict[str, float] = {}

    @contextmanager
    def place_for(self, claimed: Claimed) -> Iterator[Snoozed | None]:
        """Give None if the job may run while the block does, else how it is to wait.

        Only a suspect needs the place, and one that was called off runs nothing.
        """
        if claimed.called_off is not None or not is_suspect(claimed.deaths, max_kills=self._max_kills):
            yield None
        elif self._inside is not None:
            yield self._turned_away(claimed)
        else:
            self._inside = claimed.id
            self._waiting.pop(claimed.id, None)
            try:
                yield None
            finally:
                self._inside = None

    def _turned_away(self, claimed: Claimed) -> Snoozed:
        """Let the waiting come back at random times: each that has the luck to find the place free is one less."""
        now_s = time.monotonic()
        self._waiting = {job: at_s for job, at_s in self._waiting.items() if at_s > now_s and job != claimed.id}
        crowd = max(1.0, (len(self._waiting) + 1) / COME_BACK_AT_ONCE)
        delay_s = COMES_BACK_S * crowd * self._uniform(0.5, 1.5)
        self._waiting[claimed.id] = now_s + delay_s
        reason = f"it was running at {claimed.deaths} deaths of workers, and so is {self._inside}, which runs now"
        return Snoozed(delay_s=delay_s, code=Code.SUSPECT_WAIT, reason=reason)
