"""What calls are expected to need, learned from what they did: of each assistant, version, form of output and model.

Two histograms of each: the tokens of a completion, and the provider's count of a prompt over our own. What is
expected is a high quantile of them. Each process keeps its own; estimate_exchange.py merges them through Redis.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from schemas.chat import Usage
from worker.limits.estimate import prompt_tokens
from worker.providers.base import ChatRequest

QUANTILE = 0.9
# Fewer than these tell nothing.
SEEN_MIN = 16
# What a completion is taken to need when nobody bounded it and nothing was seen.
UNBOUNDED_COMPLETION_TOKENS = 1024
# Until the provider's own counts were seen: other vocabularies need more, and chat templates add text of their own.
MARGIN, MARGIN_TOKENS = 1.25, 24
# A histogram that holds this many is halved, so that what was seen counts half after as many more: a change
# to longer answers is followed after some 40 calls, one to shorter ones after some 400.
HALVE_AT = 256
# A hosted assistant adds instructions and passages that we do not see; beyond this it is no ratio any more.
RATIO_MIN, RATIO_MAX = 1 / 8, 64.0
# Assistants that a process remembers; the one longest unused goes. A job may bring an assistant of its own along.
KEPT_MAX = 4096
# A process tells others of an assistant when it has seen so many more calls of it: one that is used once costs nothing.
TOLD_FROM = 4

# A quantile is looked for anew after so many values, and after each exchange: that costs more than a count.
LOOKED_AT_EVERY = 32

Kind = Literal["c", "p"]
# How much wider each bucket is than the one before: the most by which a quantile is too high.
_GROWTH: dict[Kind, float] = {"c": 1.05, "p": 1.02}

# Counts by bucket: `c<n>` of completion tokens, `p<n>` of ratios, as the fields in Redis are named.
Counts = dict[str, int]


@dataclass(frozen=True, slots=True)
class EstimateKey:
    """Calls that are alike: one assistant, in one version or inline form, with one form of output, on one model."""

    assistant: str
    version: str
    output: str
    model: str

    def __str__(self) -> str:
        """Return its name in Redis keys."""
        return f"{self.assistant}@{self.version}:{self.output}:{self.model}"


@dataclass(frozen=True, slots=True)
class Expected:
    """Tokens that one call is expected to need; `completion` is that of all its choices.

    `counted` is our own count of the prompt, of which `prompt` was made.
    """

    prompt: int
    completion: int
    counted: int
    choices: int = 1

    @property
    def total(self) -> int:
        """Return what is to be reserved."""
        return self.prompt + self.completion

    def at_most(self, *, max_tokens: int | None) -> Usage:
        """Return what it is not to exceed: a completion `max_tokens`, or what is expected where nothing bounds it."""
        prompt = max(self.prompt, math.ceil(self.counted * MARGIN + MARGIN_TOKENS))
        completion = self.completion if max_tokens is None else max_tokens * self.choices
        return Usage(prompt_tokens=prompt, completion_tokens=completion)


@dataclass(slots=True)
class _Seen:
    """What is known of one key: what Redis had, and what this process has seen since; `asked` once Redis was."""

    shared: Counts = field(default_factory=dict)
    own: Counts = field(default_factory=dict)
    asked: bool = False
    quantiles: dict[Kind, float] = field(default_factory=dict)
    added: int = 0

    def quantile(self, kind: Kind) -> float | None:
        known = self.quantiles.get(kind)
        if known is None:
            known = _quantile((self.shared, self.own), kind)
            if known is not None:
                self.quantiles[kind] = known
        return known

    def add(self, kind: Kind, value: float) -> None:
        name = f"{kind}{_bucket(kind, value)}"
        self.own[name] = self.own.get(name, 0) + 1
        self.added += 1
        if self.added >= LOOKED_AT_EVERY:
            self.added = 0
            self.quantiles.clear()

    @property
    def news(self) -> int:
        """Return how many calls the others have not been told of."""
        return max(sum(count for name, count in self.own.items() if name.startswith(kind)) for kind in _GROWTH)


class Estimates:
    """Expects and learns, in memory and at once; safe within one event loop."""

    def __init__(self) -> None:
        """Begin with nothing seen."""
        self._seen: OrderedDict[EstimateKey, _Seen] = OrderedDict()

    def expect(self, request: ChatRequest, key: EstimateKey) -> Expected:
        """Return what the call is expected to need: a quantile of what was seen, never above its `max_tokens`.

        While too little was seen, a completion may need `max_tokens`, or 1,024 where nobody bounded it.
        """
        seen = self._of(key)
        counted, choices = prompt_tokens(request), request.n or 1
        ratio, completion = seen.quantile("p"), seen.quantile("c")
        prompt = counted * MARGIN + MARGIN_TOKENS if ratio is None else counted * ratio
        each = _bounded(completion, max_tokens=request.max_tokens)
        return Expected(prompt=math.ceil(prompt), completion=each * choices, counted=counted, choices=choices)

    def learn(self, key: EstimateKey, expected: Expected, usage: Usage | None) -> None:
        """Learn from the provider's count; from one that is missing, in whole or in part, that part is not learned."""
        if usage is None:
            return
        seen = self._of(key)
        if usage.completion_tokens > 0:
            seen.add("c", math.ceil(usage.completion_tokens / expected.choices))
        if usage.prompt_tokens > 0 and expected.counted > 0:
            seen.add("p", min(max(usage.prompt_tokens / expected.counted, RATIO_MIN), RATIO_MAX))
        if seen.news > HALVE_AT:
            # Nobody could be told for long.
            seen.own = halved(seen.own)

    def to_exchange(self, *, all_news: bool = False) -> dict[EstimateKey, Counts]:
        """Return what this process has seen and not told; empty for an assistant that it has not asked about yet."""
        news_min = 1 if all_news else TOLD_FROM
        return {
            key: dict(seen.own) if seen.news >= news_min else {}
            for key, seen in self._seen.items()
            if not seen.asked or seen.news >= news_min
        }

    def exchanged(self, key: EstimateKey, *, told: Mapping[str, int], merged: Mapping[str, int]) -> None:
        """Take what all workers have seen, of which `told` is no longer news."""
        seen = self._seen.get(key)
        if seen is None:
            return
        seen.asked = True
        seen.shared = {name: count for name, count in merged.items() if _known(name) and count > 0}
        left = {name: count - told.get(name, 0) for name, count in seen.own.items()}
        seen.own = {name: count for name, count in left.items() if count > 0}
        seen.quantiles.clear()

    def _of(self, key: EstimateKey) -> _Seen:
        seen = self._seen.get(key)
        if seen is None:
            seen = self._seen[key] = _Seen()
            if len(self._seen) > KEPT_MAX:
                self._seen.popitem(last=False)
        self._seen.move_to_end(key)
        return seen


def _bounded(completion: float | None, *, max_tokens: int | None) -> int:
    if completion is None:
        return UNBOUNDED_COMPLETION_TOKENS if max_tokens is None else max_tokens
    return int(completion if max_tokens is None else min(completion, max_tokens))


def halved(counts: Mapping[str, int]) -> Counts:
    """Return half of each count; what is rounded away goes to the next bucket, so that quantiles stay."""
    half: Counts = {}
    carried = {"c": 0, "p": 0}
    for name in sorted(counts, key=lambda name: int(name[1:])):
        total = counts[name] + carried[name[0]]
        carried[name[0]] = total % 2
        if total // 2:
            half[name] = total // 2
    return half


def _quantile(parts: Iterable[Counts], kind: Kind) -> float | None:
    counts: dict[int, int] = {}
    for part in parts:
        for name, count in part.items():
            if name.startswith(kind):
                bucket = int(name[1:])
                counts[bucket] = counts.get(bucket, 0) + count
    left = sum(counts.values())
    if left < SEEN_MIN:
        return None
    above = math.floor(left * (1 - QUANTILE) + 1e-9)
    for bucket in sorted(counts, reverse=True):
        above -= counts[bucket]
        if above < 0:
            return _GROWTH[kind] ** bucket
    raise AssertionError("a quantile lies in one of the buckets")


def _bucket(kind: Kind, value: float) -> int:
    """Return the bucket whose upper end is the first that is not below the value."""
    return math.ceil(math.log(value) / math.log(_GROWTH[kind]) - 1e-9)


def _known(name: str) -> bool:
    return name[:1] in _GROWTH and name[1:].removeprefix("-").isdecimal()
