"""`Idempotency-Key`: a request that is sent again finds the job or batch that the first one made.

The id of what a request makes is derived from its workspace, its operation, its key and its body, and enqueueing
an id again is a no-op in Redis and SQL: so a repetition, or two at once, make one. Redis keeps for KEPT_S which
body a key came with first, so that the same key with another body is refused; later it is a new request.
(Modelled on the IETF's draft "The Idempotency-Key HTTP Header Field": 422 for another body.)
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Annotated

import redis.exceptions
from fastapi import Header
from pydantic import BaseModel

from producer.answers import text
from producer.gateway.parts import Parts
from producer.gateway.problem import Kind, Problem
from schemas import names
from schemas.result import JobResult

# How long a key is compared with the body that it first came with.
KEPT_S = 24 * 60 * 60
KEY_MAX_CHARS = 255

# The header, for a handler's signature; it goes to `identified` as it is.
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=KEY_MAX_CHARS,
        pattern=r"^[\x21-\x7e]+$",
        description="A request that is sent again with the same key and body finds what the first one made",
    ),
]


@dataclass(frozen=True, slots=True)
class Identified:
    """A request that came with a key; `digest` is of 32 hexadecimal digits, and alike for its repetitions."""

    digest: str

    @property
    def job_id(self) -> str:
        """Return the id of the job that the request makes."""
        return f"job_{self.digest}"

    @property
    def batch_id(self) -> str:
        """Return the id of the batch that the request makes."""
        return f"batch_{self.digest}"


async def identified(
    parts: Parts, key: str | None, *, workspace: str, operation: str, body: BaseModel | str
) -> Identified | None:
    """Return the ids that belong to the request, None if it has no key; Problem 422 if the key came with another body.

    `operation` is a word for the route, such as `jobs`; `body` the request's model, or a digest of what was sent,
    with all that changes what is asked for.
    """
    if key is None:
        return None
    asked = body if isinstance(body, str) else body.model_dump_json(exclude_unset=True)
    fingerprint = _digest(asked)
    place = names.idempotency(_digest(workspace, operation, key))
    try:
        # Two that come at once: one of them sets it, and both then see the same.
        if not await parts.redis.set(place, fingerprint, nx=True, ex=KEPT_S):
            first = await parts.redis.get(place)
            if first is not None and text(first) != fingerprint:
                raise Problem(
                    Kind.UNPROCESSABLE,
                    "the Idempotency-Key was used before with another body; send the first body again, or a new key",
                    code="idempotency_key_reused",
                    param="Idempotency-Key",
                )
    except redis.exceptions.RedisError as exc:
        raise Problem(
            Kind.UNAVAILABLE, "the queue does not answer; try again", code="queue_unavailable", retry_after_s=1
        ) from exc
    return Identified(_digest(workspace, operation, key, fingerprint)[:32])


async def ended_before(parts: Parts, request: Identified | None) -> JobResult | None:
    """Return how the job of an earlier request with this key ended, if it has and SQL knows it.

    Ask before enqueueing: Redis forgets a job a day after its end, and would take it again.
    """
    return None if request is None else await parts.in_thread(parts.records.job, request.job_id)


async def made_before(parts: Parts, request: Identified | None) -> str | None:
    """Return the id that was remembered of an earlier request with this key, where it does not follow from the key."""
    if request is None:
        return None
    found = await parts.redis.get(names.idempotency(request.digest))
    return None if found is None else text(found)


async def remember(parts: Parts, request: Identified | None, made: str) -> None:
    """Keep for KEPT_S what the request has made."""
    if request is not None:
        await parts.redis.set(names.idempotency(request.digest), made, ex=KEPT_S)


def _digest(*texts: str) -> str:
    digest = hashlib.sha256()
    for each in texts:
        # With its length: no two lists of texts run into each other.
        encoded = each.encode("utf-8", "surrogatepass")
        digest.update(b"%d:" % len(encoded) + encoded)
    return digest.hexdigest()
