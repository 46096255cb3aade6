"""How much one rendering, or all renderings of a job, may cost.

The engine runs on a worker's event loop and knows no bounds. So every branch of a template begins with a call of
SPEND (written by `template_syntax`), lists charge for their items, and texts for being printed. Loops and toJSON that
used up MAX_STEPS took 0.13 to 0.17 s on 2 cores (Python 3.11), twice as many 0.35 to 0.9 s with a load of 3.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

MAX_STEPS: Final = 250_000
MAX_CHARS: Final = 16_000_000
# Tags that one template may have: each costs some 0.1 ms to read.
MAX_TAGS: Final = 5_000

# The helper that charges for a branch; who calls it by hand only makes his own template dearer.
SPEND: Final = "$spend"
TAG_STEPS: Final = 20
# To read a tag, before it is rendered.
READ_STEPS: Final = 30


class BudgetSpentError(Exception):
    """A template cost more than it may; no ValueError, so that no reading of a bad value takes it for its own."""


class Budget:
    """Steps and characters that are left."""

    def __init__(self, *, steps: int = MAX_STEPS, chars: int = MAX_CHARS) -> None:
        """Begin with these."""
        self._steps, self._chars = steps, chars
        self._steps_left, self._chars_left = steps, chars

    def spend(self, *, steps: int = 0, chars: int = 0) -> None:
        """Take these away; BudgetSpentError if there are not so many."""
        self._steps_left -= max(steps, 0)
        self._chars_left -= max(chars, 0)
        if self._steps_left < 0:
            raise BudgetSpentError(
                f"the template takes more than {self._steps} steps; give its loops fewer items, or nest fewer of them"
            )
        if self._chars_left < 0:
            raise BudgetSpentError(f"the template writes more than {self._chars} characters; print less")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Charge all that is rendered inside to this budget."""
        token = _CURRENT.set(self)
        try:
            yield
        finally:
            _CURRENT.reset(token)


_CURRENT: ContextVar[Budget | None] = ContextVar("template_budget", default=None)


def spend(*, steps: int = 0, chars: int = 0) -> None:
    """Charge the budget of the rendering that is under way, if one is."""
    budget = _CURRENT.get()
    if budget is not None:
        budget.spend(steps=steps, chars=chars)
