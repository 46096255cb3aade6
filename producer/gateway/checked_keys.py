"""Keys that were found good a moment ago, so that SQL is not asked at each request.

How long a key may still open doors that was revoked, or an assistant be used that was unshared: whoever changes a
key says so on names.KEYS_CHANNEL, and every gateway forgets then what it knew. Where that word is lost, because Redis
was away or the one who revoked could not reach it, it is KEPT_S at the most. An end by time is looked at each time.
What was let in before goes on to its end.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from contextlib import suppress
from datetime import UTC, datetime

import anyio
import redis.exceptions
from anyio import CapacityLimiter
from redis.asyncio import Redis

from producer.gateway.keys import ApiKeys, KeyState, is_key, state_of
from schemas import names
from schemas.tables import ApiKey

KEPT_S = 5.0
# Each is an existing key; the bound is for installations with very many.
_KEPT_AT_MOST = 10_000
# A flood of wrong keys must leave the routes their threads, and their connections to the database.
_LOOKUPS_AT_ONCE = 4


class CheckedKeys:
    """The keys of one process's callers; bound to its event loop.

    What was found is kept under a digest of the whole key: a wrong secret always goes to SQL, whether its key is in
    use or not there at all, so that the time which an answer takes tells nothing. What was not found is not kept.
    """

    def __init__(self, keys: ApiKeys, connection: Redis, *, changed: asyncio.Event) -> None:
        """Look these up; `changed` is set at each word on names.KEYS_CHANNEL of this Redis."""
        self._keys = keys
        self._redis = connection
        self._changed = changed
        self._kept: dict[bytes, tuple[ApiKey, float]] = {}
        self._changes = 0
        self._lookups = CapacityLimiter(_LOOKUPS_AT_ONCE)

    async def find(self, text: str) -> ApiKey | None:
        """Return the key that this is, None for one that is none, was revoked or has expired."""
        if not is_key(text):
            return None
        digest = hashlib.sha256(text.encode()).digest()
        key = self._known(digest)
        if key is None:
            async with self._lookups:
                # Of many requests with one key the first few look it up.
                key = self._known(digest) or await self._looked_up(text, digest)
        return key if key is not None and state_of(key, now=datetime.now(UTC)) is KeyState.ACTIVE else None

    async def forget(self) -> None:
        """Let every gateway look keys up anew, this one at once: for who has changed one, such as what it may use."""
        self._changed.set()
        with suppress(redis.exceptions.RedisError):
            await self._redis.publish(names.KEYS_CHANNEL, "")

    def _known(self, digest: bytes) -> ApiKey | None:
        if self._changed.is_set():
            self._changed.clear()
            self._changes += 1
            self._kept.clear()
        key, until_s = self._kept.get(digest, (None, 0.0))
        return key if time.monotonic() < until_s else None

    async def _looked_up(self, text: str, digest: bytes) -> ApiKey | None:
        changes, until_s = self._changes, time.monotonic() + KEPT_S
        key = await anyio.to_thread.run_sync(self._keys.find, text)
        # What was read before a change was heard of may be from before it.
        if key is not None and changes == self._changes and not self._changed.is_set():
            if len(self._kept) >= _KEPT_AT_MOST:
                self._kept.clear()
            self._kept[digest] = key, until_s
        return key
