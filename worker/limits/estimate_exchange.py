"""The workers tell each other what calls needed: about once a second, in one script, never for a single job."""

from __future__ import annotations

import asyncio
from importlib import resources

from redis.asyncio import Redis

from schemas import names
from worker.errors import RedisAway, redis_away
from worker.events import Events, ServiceFault
from worker.limits.learned import HALVE_AT, Counts, EstimateKey, Estimates

EXCHANGE_EVERY_S = 1.0
# What nobody has called for a week is forgotten.
KEPT_S = 7 * 24 * 60 * 60
# A script holds up everybody else in Redis: at most some milliseconds.
_KEYS_AT_ONCE = 256


class EstimateExchange:
    """Merges one process's estimates with those in Redis; while Redis is away they wait."""

    def __init__(self, redis: Redis, estimates: Estimates, events: Events) -> None:
        """Take the parts."""
        self._redis = redis
        self._estimates = estimates
        self._events = events
        script = resources.files("worker.limits").joinpath("exchange_estimates.lua").read_text("utf-8")
        self._script = redis.register_script(script)

    async def exchange_forever(self) -> None:
        """Exchange until cancelled; what fails is told and tried again."""
        while True:
            try:
                await self.exchange()
            except RedisAway as exc:
                self._events.emit(ServiceFault(part="redis", error=f"estimates: {exc}"))
            except Exception as exc:  # noqa: BLE001 - a loop that ended in silence would never learn again
                self._events.emit(ServiceFault(part="estimates", error=f"{type(exc).__name__}: {exc}"))
            await asyncio.sleep(EXCHANGE_EVERY_S)

    async def exchange(self, *, all_news: bool = False) -> None:
        """Tell what is worth telling, or `all_news`, and take what others told. Raises RedisAway.

        What was told when Redis failed in the middle is told again: twice the weight of a few
        calls moves no quantile.
        """
        news = self._estimates.to_exchange(all_news=all_news)
        for some in _chunks(list(news.items())):
            arguments: list[str | int] = [KEPT_S, HALVE_AT]
            for _key, counts in some:
                arguments.append(len(counts))
                arguments += [part for count in counts.items() for part in count]
            with redis_away():
                answers = await self._script(keys=[names.seen(str(key)) for key, _counts in some], args=arguments)
            for (key, told), flat in zip(some, answers, strict=True):
                self._estimates.exchanged(key, told=told, merged=_counts_of(flat))


def _chunks(news: list[tuple[EstimateKey, Counts]]) -> list[list[tuple[EstimateKey, Counts]]]:
    return [news[start : start + _KEYS_AT_ONCE] for start in range(0, len(news), _KEYS_AT_ONCE)]


def _counts_of(flat: list[bytes | int]) -> Counts:
    texts = [part.decode() if isinstance(part, bytes) else str(part) for part in flat]
    return {name: int(count) for name, count in zip(texts[::2], texts[1::2], strict=True)}
