"""The processes beside the workers that `overhead` measures: a provider, a bare client loop, a Dramatiq no-op.

python overhead_parts.py provider LATENCY_S        prints its port; answers every POST after the latency
python overhead_parts.py bare URL REQUESTS AT_ONCE prints its processor seconds
dramatiq overhead_parts:broker                     a worker whose one actor does nothing
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

import dramatiq
import httpx
from dramatiq.brokers.redis import RedisBroker

LABELS = ("positive", "negative")
MODEL = "simulated"
CONTENT = json.dumps({"result": "positive"})


class Provider(asyncio.Protocol):
    """One keep-alive connection of a client that waits for each answer."""

    def __init__(self, latency_s: float) -> None:
        self._latency_s = latency_s
        self._got = b""
        self._transport: Any = None
        body = json.dumps(
            {
                "id": "chatcmpl-1",
                "object": "chat.completion",
                "created": 1,
                "model": MODEL,
                "choices": [
                    {"index": 0, "message": {"role": "assistant", "content": CONTENT}, "finish_reason": "stop"}
                ],
                "usage": {"prompt_tokens": 40, "completion_tokens": 6, "total_tokens": 46},
            }
        ).encode()
        head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        self._answer = head.encode() + body

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer each request that has come whole."""
        self._got += data
        while (end := self._got.find(b"\r\n\r\n")) >= 0:
            head = self._got[:end].lower()
            at = head.index(b"content-length:") + len(b"content-length:")
            whole = end + 4 + int(head[at:].split(b"\r\n", 1)[0])
            if len(self._got) < whole:
                return
            self._got = self._got[whole:]
            if self._latency_s:
                asyncio.get_running_loop().call_later(self._latency_s, self._transport.write, self._answer)
            else:
                self._transport.write(self._answer)


async def provide(latency_s: float) -> None:
    """Serve on a free port until killed."""
    server = await asyncio.get_running_loop().create_server(lambda: Provider(latency_s), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


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
        sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
        from worker.providers.exchange import http_client  # noqa: PLC0415 - only this kind has it

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
    dramatiq.actor(lambda: None, broker=made, actor_name="noop", queue_name="noop")
    return made


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["provider", latency_s]:
            asyncio.run(provide(float(latency_s)))
        case ["bare", url, requests, at_once, kind]:
            ask_and_tell(url, int(requests), int(at_once), kind)
        case _:
            sys.exit(__doc__)
else:
    broker = noop_broker(os.environ["OVERHEAD_REDIS_URL"])
