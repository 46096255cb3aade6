"""What workspaces spent, as the workers count it."""

from __future__ import annotations

from typing import cast

import redis

from schemas import names
from schemas.errors import ProducerError
from schemas.spend import SpendStatus


def accounts(connection: redis.Redis) -> list[SpendStatus]:
    """Return every workspace's accounts, by workspace and period."""
    try:
        keys = sorted(_text(key) for key in cast("set[bytes]", connection.smembers(names.SPENDS)))
        with connection.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.hgetall(key)
            found = cast("list[dict[bytes, bytes]]", pipe.execute())
    except redis.RedisError as exc:
        raise ProducerError(f"Redis does not answer as it should: {exc}") from exc
    return [
        SpendStatus.from_fields(key, {_text(field): _text(value) for field, value in fields.items()})
        for key, fields in zip(keys, found, strict=True)
        if fields  # the server has let it go: it was of long ago
    ]


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
