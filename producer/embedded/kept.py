"""A child that is started again whenever it ends."""

from __future__ import annotations

import threading
from collections.abc import Callable

from producer.embedded.child import Child
from schemas.errors import AssistqError

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
# Who lived this long was well: the next pause is the first one again.
HEALTHY_AFTER_S = 60.0


class Backoff:
    """The pause before the next start: doubled after each early death."""

    def __init__(self) -> None:
        """Begin with no deaths."""
        self.early_deaths = 0

    def after(self, *, lived_s: float) -> float:
        """Count a death and return the seconds to wait."""
        self.early_deaths = 1 if lived_s >= HEALTHY_AFTER_S else self.early_deaths + 1
        # The exponent is bounded: a float is not.
        return min(FIRST_PAUSE_S * 2.0 ** min(self.early_deaths - 1, 16), LONGEST_PAUSE_S)


class Kept:
    """Keeps one child running until `stop()`."""

    def __init__(
        self,
        start: Callable[[], Child],
        *,
        on_death: Callable[[Child, int, float], None],
    ) -> None:
        """Start it; what the first start raises is raised here.

        After each death `on_death(child, early_deaths, pause_s)` is called in the keeper's
        thread, also when a restart was refused, then with the child that ended before.
        """
        self._start = start
        self._on_death = on_death
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self.child = start()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    def terminate(self) -> None:
        """Ask it to end and do not start it again; returns at once."""
        self._stopping.set()
        # A restart that is under way holds the lock, so the child seen here is the last one.
        with self._lock:
            self.child.terminate()

    def stop(self, *, grace_s: float) -> None:
        """End it for good, by force after `grace_s`."""
        self.terminate()
        self.child.stop(grace_s=grace_s)
        self._thread.join()

    def _keep(self) -> None:
        backoff = Backoff()
        while True:
            self.child.wait()
            pause_s = backoff.after(lived_s=self.child.lived_s)
            while True:
                if self._stopping.is_set():
                    return
                self._on_death(self.child, backoff.early_deaths, pause_s)
                if self._stopping.wait(pause_s):
                    return
                with self._lock:
                    if self._stopping.is_set():
                        return
                    try:
                        self.child = self._start()
                        break
                    except AssistqError:
                        pause_s = backoff.after(lived_s=0.0)
