"""What `overhead` measures beside the workers: a bare client loop, a Dramatiq no-op.

python -m ops.bench.overhead_parts URL REQUESTS AT_ONCE plain|ours   prints its processor seconds
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
from typing import Any

import dramatiq
import httpx
from dramatiq.brokers.redis import RedisBroker

from worker.providers.exchange import http_client

LABELS = ("positive", "negative")
MODEL = "simulated"


def request_body(review: str) -> dict[str, Any]:
    """Return what a worker sends for a job of the benchmark's assistant."""
    schema = {
        "type": "object",
        "properties": {"result": {"type": "string", "enum": list(LABELS)}},
        "required": ["result"],
        "additionalProperties": False,
    }
    return {
        "model": MODEL,
        "messages": [
            {"role": "system", "content": "You label product reviews."},
            {"role": "user", "content": f"Review: {review}"},
        ],
        "max_tokens": 8,
        "temperature": 0,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "output", "strict": True, "schema": schema},
        },
    }


def client_of(kind: str, at_once: int) -> httpx.AsyncClient:
    """Return httpx's client as it comes, or as the workers have it."""
    if kind == "ours":
        return http_client(connections=at_once, timeout_s=120)
    limits = httpx.Limits(max_connections=at_once, max_keepalive_connections=at_once)
    return httpx.AsyncClient(limits=limits, timeout=120, trust_env=False)


async def ask(url: str, requests: int, at_once: int, client: httpx.AsyncClient) -> None:
    """Send the requests, `at_once` at a time, and read each label."""
    left = iter(range(requests))
    async with client:

        async def one_after_the_other() -> None:
            for number in left:
                reply = await client.post(url, json=request_body(f"review number {number}, superb"))
                label = json.loads(reply.json()["choices"][0]["message"]["content"])["result"]
                if label not in LABELS:
                    raise ValueError(label)

        await asyncio.gather(*(one_after_the_other() for _ in range(at_once)))


def ask_and_tell(url: str, requests: int, at_once: int, kind: str) -> None:
    """Print the processor seconds of the loop alone; the imports before it do not count."""
    client = client_of(kind, at_once)
    before = resource.getrusage(resource.RUSAGE_SELF)
    asyncio.run(ask(url, requests, at_once, client))
    after = resource.getrusage(resource.RUSAGE_SELF)
    print(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)


def noop_broker(url: str) -> RedisBroker:
    """Return a broker with one actor, which does nothing."""
    made = RedisBroker(url=url, namespace="noop", middleware=[])
    made.add_middleware(dramatiq.middleware.CurrentMessage())
    dramatiq.set_broker(made)

    @dramatiq.actor(broker=made, actor_name="noop", queue_name="noop")
    def noop() -> None:
        """Do nothing."""

    return made


if __name__ == "__main__":
    match sys.argv[1:]:
        case [url, requests, at_once, kind]:
            ask_and_tell(url, int(requests), int(at_once), kind)
        case _:
            sys.exit(__doc__)
