"""What workspaces spent, as the workers count it."""

from __future__ import annotations

from typing import cast

import redis

from producer.answers import answers, text
from schemas import names
from schemas.spend import SpendStatus


def accounts(connection: redis.Redis) -> list[SpendStatus]:
    """Return every workspace's accounts, by workspace and period."""
    with answers():
        keys = sorted(text(key) for key in cast("set[bytes]", connection.smembers(names.SPENDS)))
        with connection.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.hgetall(key)
            found = cast("list[dict[bytes, bytes]]", pipe.execute())
    return [
        SpendStatus.from_fields(key, {text(field): text(value) for field, value in fields.items()})
        for key, fields in zip(keys, found, strict=True)
        if fields  # the server has let it go: it was of long ago
    ]
