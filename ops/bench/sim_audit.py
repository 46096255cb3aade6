"""What a simulated provider served in one lane: the figures that a client is judged by."""

from __future__ import annotations

from typing import Any

from ops.bench.sim_limits import RollingMinute


class Audit:
    """Counts of one lane, told as they happen; times are seconds of the provider's clock."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._arrived = 0
        self._served = 0
        self._refused = 0
        self._errors = 0
        self._cut = 0
        self._prompt_tokens = 0
        self._completion_tokens = 0
        self._in_flight = 0
        self._in_flight_peak = 0
        self._first_arrival_s: float | None = None
        self._last_end_s: float | None = None
        self._minute = RollingMinute()
        self._prompts: set[bytes] = set()
        self._steps: set[str] = set()
        self._duplicate_prompts = 0
        self._duplicate_steps = 0

    def refused(self, now_s: float) -> None:
        """Count a request that got a 429."""
        self._arrive(now_s)
        self._refused += 1

    def admitted(self, now_s: float, *, prompt_tokens: int) -> None:
        """Count a request that was let in, and its prompt."""
        self._arrive(now_s)
        self._prompt_tokens += prompt_tokens
        self._minute.add(now_s, requests=1, tokens=prompt_tokens)
        self._in_flight += 1
        self._in_flight_peak = max(self._in_flight_peak, self._in_flight)

    def failed(self, now_s: float) -> None:
        """Count the end of a call that sold nothing: a 500."""
        self._end(now_s)
        self._errors += 1

    def sold(self, now_s: float, *, completion_tokens: int, prompt: bytes, step_id: str | None, cut: bool) -> None:
        """Count the end of a call whose completion was charged, and whether the same was sold before."""
        self._end(now_s)
        self._served += 1
        self._cut += cut
        self._completion_tokens += completion_tokens
        self._minute.add(now_s, requests=0, tokens=completion_tokens)
        self._duplicate_prompts += prompt in self._prompts
        self._prompts.add(prompt)
        if step_id is not None:
            self._duplicate_steps += step_id in self._steps
            self._steps.add(step_id)

    def report(self, *, overdraft_tokens: float) -> dict[str, Any]:
        """Return the figures as a JSON value; what has no value yet is null.

        `served` counts completions that were charged, `cut` those of them whose reply was cut
        off. `duplicate_prompts` and `duplicate_steps` count completions sold again for the same
        messages and under the same idempotency key. `span_s` is from the first arrival,
        refused or not, to the last end.
        """
        first_s, last_s = self._first_arrival_s, self._last_end_s
        return {
            "arrived": self._arrived,
            "served": self._served,
            "refused_429": self._refused,
            "errors_500": self._errors,
            "cut": self._cut,
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": self._completion_tokens,
            "tokens": self._prompt_tokens + self._completion_tokens,
            "largest_minute_requests": self._minute.largest_requests,
            "largest_minute_tokens": self._minute.largest_tokens,
            "overdraft_tokens": round(overdraft_tokens, 3),
            "duplicate_prompts": self._duplicate_prompts,
            "duplicate_steps": self._duplicate_steps,
            "in_flight": self._in_flight,
            "in_flight_peak": self._in_flight_peak,
            "first_arrival_s": first_s,
            "last_end_s": last_s,
            "span_s": None if first_s is None or last_s is None else last_s - first_s,
        }

    def _arrive(self, now_s: float) -> None:
        self._arrived += 1
        if self._first_arrival_s is None:
            self._first_arrival_s = now_s

    def _end(self, now_s: float) -> None:
        self._in_flight -= 1
        self._last_end_s = now_s
