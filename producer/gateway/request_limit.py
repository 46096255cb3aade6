"""How many requests a minute a key may make, over all gateways, on Redis' clock."""

from __future__ import annotations

import redis.exceptions
from redis.asyncio import Redis

from producer.gateway.problem import Kind, Problem
from schemas import names
from schemas.scripts import read_script


class RequestLimit:
    """Counts the requests of keys that have a limit.

    A key may make `rpm` requests at once after a minute of rest, and then one every 60 / rpm seconds.
    """

    def __init__(self, connection: Redis) -> None:
        """Use this client."""
        self._script = connection.register_script(read_script("producer.gateway", "request_limit.lua"))

    async def take(self, key_id: str, rpm: int) -> None:
        """Count a request; Problem 429 with the time at which it may pass, 503 where Redis does not answer."""
        try:
            wait_us = await self._script(keys=[names.request_limit(key_id)], args=[rpm])
        except redis.exceptions.RedisError as exc:
            raise Problem(
                Kind.UNAVAILABLE,
                "the queue, which counts this key's requests, does not answer; try again",
                code="queue_unavailable",
                retry_after_s=1,
            ) from exc
        if wait_us:
            raise Problem(
                Kind.RATE_LIMITED,
                f"this key may make {rpm} requests a minute; ask again when Retry-After says",
                code="rate_limit_exceeded",
                retry_after_s=wait_us / 1_000_000,
            )
