"""Asks Redis which waiting jobs may go to the workers now."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from redis.asyncio import Redis

from schemas import names
from schemas.scripts import read_script
from worker.errors import redis_away
from worker.queue.queue import CLAIM_WITHIN_S, HORIZON_S, Hint, hints_of

# Released beyond the workers' capacity, so that a freed place finds its next hint waiting.
SURPLUS_PERCENT = 25
# Places that are kept for workspaces that hold less than their share: slow calls of one fill all the others.
KEPT_PERCENT = 10


@dataclass(frozen=True, slots=True)
class Released:
    """What was released, and when to look again at the latest (None: at no certain time)."""

    hints: list[Hint]
    look_again_s: float | None


class Releases:
    """The worker's side of release.lua."""

    def __init__(self, redis: Redis) -> None:
        """Use this client; it must retry by itself while the server is away."""
        self._redis = redis
        self._script = redis.register_script(read_script("worker.admission", "release.lua"))

    async def release(self, limit: int) -> Released:
        """Release up to `limit` waiting jobs, as far as the workers' capacity and their lanes' limits go."""
        args = [limit, int(CLAIM_WITHIN_S * 1000), SURPLUS_PERCENT, int(HORIZON_S * 1e6), KEPT_PERCENT]
        with redis_away():
            look_again_ms, *reply = await self._script(keys=[], args=args)
        return Released(hints_of(reply), None if look_again_ms < 0 else look_again_ms / 1000)

    async def set_weights(self, weights: Mapping[str, float]) -> None:
        """Say which workspaces weigh more or less than 1 against the others, instead of what was said before.

        ValueError for a weight that is not a positive number.
        """
        for workspace, weight in weights.items():
            if not 0 < weight < math.inf:
                raise ValueError(f"the weight of workspace '{workspace}' must be a number above 0, not {weight}")
        with redis_away():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.delete(names.WEIGHTS)
                if weights:
                    pipe.hset(names.WEIGHTS, mapping={workspace: str(weight) for workspace, weight in weights.items()})
                await pipe.execute()
