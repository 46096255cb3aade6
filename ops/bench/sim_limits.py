"""The limits of a simulated provider, as strictly as one may enforce them: a bucket, a rolling minute, or none.

A request is admitted by its prompt alone, which is charged at once; its completion is charged
when the call ends and may overdraw the limit. Times are seconds of one monotonic clock.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Literal, Protocol, assert_never

Shape = Literal["bucket", "window", "none"]

MINUTE_S = 60.0
# Less than a clock's tick is worth: rounding alone never refuses who waited as long as it was told.
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class Quota:
    """Requests and tokens a minute; a bucket holds `capacity_s` seconds of them."""

    shape: Shape
    rpm: int
    tpm: int
    capacity_s: float = MINUTE_S

    def __post_init__(self) -> None:
        """Refuse limits that admit nothing."""
        if self.rpm < 1 or self.tpm < 1 or self.capacity_s <= 0:
            raise ValueError(f"limits must be above 0: rpm {self.rpm}, tpm {self.tpm}, capacity {self.capacity_s:g} s")

    def ideal_span_s(self, *, requests: int, tokens: int, latency_s: float, burst: bool) -> float:
        """Return the shortest time from the first arrival to the last end that the limits allow, in seconds.

        Without `burst`, that of an even pace from an empty bucket.
        """
        minutes = max(requests / self.rpm, tokens / self.tpm)
        match self.shape:
            case "none":
                return latency_s
            case "bucket":
                at_once = self.capacity_s / MINUTE_S if burst else 0.0
                return max(0.0, minutes - at_once) * MINUTE_S + latency_s
            case "window":
                # A whole minute's limit at once, and again when that has left the window.
                waited = max(0, -int(-minutes // 1) - 1) if burst else minutes
                return waited * MINUTE_S + latency_s
            case _:
                assert_never(self.shape)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A 429: what was short, and the seconds until the request would fit; None if it never will."""

    short_of: Literal["requests", "tokens"]
    retry_after_s: float | None


@dataclass(frozen=True, slots=True)
class Remaining:
    """What is left of the limits, and the seconds until each is whole again."""

    requests: int
    tokens: int
    reset_requests_s: float
    reset_tokens_s: float


class Meter(Protocol):
    """One lane's limit at work. `overdraft_tokens` is the most that completions ever overdrew it."""

    overdraft_tokens: float

    def admit(self, now_s: float, prompt_tokens: int) -> Refusal | None:
        """Charge a request and its prompt, or refuse it and charge nothing."""

    def charge(self, now_s: float, tokens: int) -> None:
        """Charge a completion, whatever is left."""

    def remaining(self, now_s: float) -> Remaining:
        """Return what is left."""


def meter(quota: Quota) -> Meter:
    """Return a fresh meter of this shape, full."""
    match quota.shape:
        case "bucket":
            return Bucket(quota)
        case "window":
            return Window(quota)
        case "none":
            return Unlimited(quota)
        case _:
            assert_never(quota.shape)


class RollingMinute:
    """What was charged in the last 60 s, and the most that any 60 s held; a charge leaves after 60 s exactly."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.requests = 0
        self.tokens = 0
        self.largest_requests = 0
        self.largest_tokens = 0
        self._charges: deque[tuple[float, int, int]] = deque()

    def add(self, now_s: float, *, requests: int, tokens: int) -> None:
        """Charge."""
        self.forget(now_s)
        self._charges.append((now_s, requests, tokens))
        self.requests += requests
        self.tokens += tokens
        self.largest_requests = max(self.largest_requests, self.requests)
        self.largest_tokens = max(self.largest_tokens, self.tokens)

    def forget(self, now_s: float) -> None:
        """Drop the charges that have left."""
        # As fits_at_s has it: a difference rounds otherwise than a sum.
        while self._charges and self._charges[0][0] + MINUTE_S <= now_s:
            _, requests, tokens = self._charges.popleft()
            self.requests -= requests
            self.tokens -= tokens

    def fits_at_s(self, *, requests: int, tokens: int) -> float:
        """Return when no more than these will be left of what stands now; minus infinity if that is so now."""
        left_requests, left_tokens = self.requests, self.tokens
        if left_requests <= requests and left_tokens <= tokens:
            return float("-inf")
        for at_s, charged_requests, charged_tokens in self._charges:
            left_requests -= charged_requests
            left_tokens -= charged_tokens
            if left_requests <= requests and left_tokens <= tokens:
                return at_s + MINUTE_S
        raise ValueError("no wait makes room for less than nothing")

    def empty_at_s(self) -> float:
        """Return when nothing of what stands now will be left; minus infinity if nothing stands."""
        return self._charges[-1][0] + MINUTE_S if self._charges else float("-inf")


class Bucket:
    """Two token buckets, of requests and of tokens, that refill evenly."""

    def __init__(self, quota: Quota) -> None:
        """Begin full."""
        self._requests_per_s = quota.rpm / MINUTE_S
        self._tokens_per_s = quota.tpm / MINUTE_S
        # A bucket that cannot hold one request would admit none for ever.
        self._requests_capacity = max(1.0, self._requests_per_s * quota.capacity_s)
        self._tokens_capacity = self._tokens_per_s * quota.capacity_s
        self._requests = self._requests_capacity
        self._tokens = self._tokens_capacity
        self._filled_s = float("-inf")
        self.overdraft_tokens = 0.0

    def admit(self, now_s: float, prompt_tokens: int) -> Refusal | None:
        """Charge a request and its prompt, or refuse it and charge nothing."""
        if prompt_tokens > self._tokens_capacity + _ROUNDING:
            return Refusal("tokens", None)
        self._fill(now_s)
        requests_wait_s = (1 - self._requests) / self._requests_per_s
        tokens_wait_s = (prompt_tokens - self._tokens) / self._tokens_per_s
        if self._requests + _ROUNDING < 1 or self._tokens + _ROUNDING < prompt_tokens:
            short_of: Literal["requests", "tokens"] = "requests" if requests_wait_s > tokens_wait_s else "tokens"
            return Refusal(short_of, max(requests_wait_s, tokens_wait_s))
        self._requests -= 1
        self._tokens -= prompt_tokens
        return None

    def charge(self, now_s: float, tokens: int) -> None:
        """Charge a completion, which may leave a debt."""
        self._fill(now_s)
        self._tokens -= tokens
        self.overdraft_tokens = max(self.overdraft_tokens, -self._tokens)

    def remaining(self, now_s: float) -> Remaining:
        """Return what is left."""
        self._fill(now_s)
        return Remaining(
            requests=max(0, int(self._requests)),
            tokens=max(0, int(self._tokens)),
            reset_requests_s=(self._requests_capacity - self._requests) / self._requests_per_s,
            reset_tokens_s=(self._tokens_capacity - self._tokens) / self._tokens_per_s,
        )

    def _fill(self, now_s: float) -> None:
        passed_s = now_s - self._filled_s
        self._filled_s = now_s
        self._requests = min(self._requests_capacity, self._requests + passed_s * self._requests_per_s)
        self._tokens = min(self._tokens_capacity, self._tokens + passed_s * self._tokens_per_s)


class Window:
    """A minute's limit in each 60 s, wherever they begin."""

    def __init__(self, quota: Quota) -> None:
        """Begin with nothing charged."""
        self._quota = quota
        self._minute = RollingMinute()
        self.overdraft_tokens = 0.0

    def admit(self, now_s: float, prompt_tokens: int) -> Refusal | None:
        """Charge a request and its prompt, or refuse it and charge nothing."""
        if prompt_tokens > self._quota.tpm:
            return Refusal("tokens", None)
        self._minute.forget(now_s)
        room = self._quota.tpm - prompt_tokens
        fits_at_s = self._minute.fits_at_s(requests=self._quota.rpm - 1, tokens=room)
        if fits_at_s > now_s:
            return Refusal("tokens" if self._minute.tokens > room else "requests", fits_at_s - now_s)
        self._minute.add(now_s, requests=1, tokens=prompt_tokens)
        return None

    def charge(self, now_s: float, tokens: int) -> None:
        """Charge a completion, which may take the minute above its limit."""
        self._minute.add(now_s, requests=0, tokens=tokens)
        self.overdraft_tokens = max(self.overdraft_tokens, float(self._minute.tokens - self._quota.tpm))

    def remaining(self, now_s: float) -> Remaining:
        """Return what is left."""
        minute = self._minute
        minute.forget(now_s)
        reset_s = max(0.0, minute.empty_at_s() - now_s)
        return Remaining(
            requests=self._quota.rpm - minute.requests,
            tokens=max(0, self._quota.tpm - minute.tokens),
            reset_requests_s=reset_s,
            reset_tokens_s=reset_s,
        )


class Unlimited:
    """No limit."""

    def __init__(self, quota: Quota) -> None:
        """Take the quota for what `remaining` says."""
        self._remaining = Remaining(requests=quota.rpm, tokens=quota.tpm, reset_requests_s=0.0, reset_tokens_s=0.0)
        self.overdraft_tokens = 0.0

    def admit(self, now_s: float, prompt_tokens: int) -> Refusal | None:  # noqa: ARG002 - the protocol's signature
        """Admit."""
        return None

    def charge(self, now_s: float, tokens: int) -> None:
        """Charge nothing."""

    def remaining(self, now_s: float) -> Remaining:  # noqa: ARG002 - the protocol's signature
        """Return the whole limits."""
        return self._remaining
