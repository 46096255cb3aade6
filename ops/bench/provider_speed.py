"""How many requests a second the simulated provider serves on a core, so that it is not what is measured.

The load is raw HTTP over kept connections from this process, each with one request on its way; the
server runs in another. Its own processor time tells what a core would serve if the generator, or
others, took time from it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import click
import httptools
import psutil
import uvloop

from ops.bench import report, workload
from ops.bench.sim_limits import Quota
from ops.bench.stack import SimServer, forget_own_settings, heed_sigterm

GOAL = "at least 5,000 requests a second of the server's processor time"
GOAL_PER_CORE_S = 5000
MODEL = "speed"
_MANY = 10**9


@dataclass(frozen=True, slots=True)
class Cell:
    """One run."""

    limits: str
    connections: int
    requests: int
    requests_per_s: float
    requests_per_core_s: float
    refused_429: int
    goal_met: bool


@click.command(help=__doc__, context_settings={"show_default": True})
@click.option("--requests", type=click.IntRange(1), default=50_000)
@click.option("--connections", type=click.IntRange(1), default=256)
@click.option("--json", "as_json", is_flag=True, help="Print the JSON instead of the table.")
@click.option("--out", type=click.Path(path_type=Path), default=report.RESULTS / "provider_speed.json")
def main(*, requests: int, connections: int, as_json: bool, out: Path) -> None:
    """Measure each shape of limits, wide enough to admit everything, and write the figures."""
    forget_own_settings()
    heed_sigterm()
    machine = report.machine()
    # The texts are made before the clock starts.
    bodies = [_request(text) for text in workload.questions(requests)]
    cells = []
    for shape in ("none", "bucket", "window"):
        with SimServer(Quota(shape, rpm=_MANY, tpm=_MANY)) as provider:
            cells.append(_measured(provider, bodies, connections=connections, limits=shape))
    report.write(out, bench="provider_speed", goal=GOAL, machine=machine, cells=[asdict(cell) for cell in cells])
    if as_json:
        click.echo(out.read_text("utf-8"), nl=False)
        return
    columns = ["limits", "connections", "requests", "requests/s", "requests per core second", "goal"]
    report.out.print(
        report.table(
            columns,
            (
                (
                    cell.limits,
                    cell.connections,
                    cell.requests,
                    f"{cell.requests_per_s:.0f}",
                    f"{cell.requests_per_core_s:.0f}",
                    "met" if cell.goal_met else "missed",
                )
                for cell in cells
            ),
        )
    )
    report.out.print(f"goal: {GOAL}\n{out}", soft_wrap=True)


def _measured(provider: SimServer, bodies: list[bytes], *, connections: int, limits: str) -> Cell:
    host, port = provider.base_url.removeprefix("http://").removesuffix("/v1").split(":")
    server = psutil.Process(provider.pid)
    before_s = sum(server.cpu_times()[:2])
    began_s = time.perf_counter()
    uvloop.run(_load(host, int(port), bodies, connections=connections))
    took_s = time.perf_counter() - began_s
    core_s = sum(server.cpu_times()[:2]) - before_s
    audit = provider.audit(MODEL)
    refused = audit["refused_429"] if audit else 0
    per_core_s = len(bodies) / core_s
    return Cell(
        limits=limits,
        connections=connections,
        requests=len(bodies),
        requests_per_s=round(len(bodies) / took_s),
        requests_per_core_s=round(per_core_s),
        refused_429=refused,
        goal_met=per_core_s >= GOAL_PER_CORE_S and not refused,
    )


def _request(text: str) -> bytes:
    messages = [{"role": "system", "content": workload.INSTRUCTIONS}, {"role": "user", "content": text}]
    body = json.dumps({"model": MODEL, "messages": messages, "max_tokens": workload.MAX_TOKENS}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: sim\r\ncontent-type: application/json\r\ncontent-length: "
    return f"{head}{len(body)}\r\n\r\n".encode() + body


async def _load(host: str, port: int, bodies: list[bytes], *, connections: int) -> None:
    """Send every request and wait for the last answer."""
    loop = asyncio.get_running_loop()
    left = iter(bodies)
    over: asyncio.Future[None] = loop.create_future()
    answered = 0

    def on_answer() -> bytes | None:
        nonlocal answered
        answered += 1
        if answered == len(bodies):
            over.set_result(None)
        return next(left, None)

    def on_lost() -> None:
        if not over.done():
            over.set_exception(ConnectionError("the provider closed a connection"))

    clients = []
    for _, first in zip(range(connections), left, strict=False):
        _, client = await loop.create_connection(lambda: _Client(on_answer, on_lost), host, port)
        clients.append((client, first))
    for client, first in clients:
        client.send(first)
    await over
    for client, _ in clients:
        client.close()


class _Client(asyncio.Protocol):
    """One connection: sends the next request when an answer is whole."""

    def __init__(self, on_answer: Callable[[], bytes | None], on_lost: Callable[[], None]) -> None:
        self._on_answer = on_answer
        self._on_lost = on_lost
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._on_lost()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        """Hear of a whole answer: httptools calls this."""
        following = self._on_answer()
        if following is not None:
            self.send(following)

    def send(self, request: bytes) -> None:
        """Send one request."""
        self._open.write(request)

    def close(self) -> None:
        """Close the connection."""
        self._open.close()

    @property
    def _open(self) -> Any:
        if self._transport is None:
            raise ConnectionError("not connected")
        return self._transport


if __name__ == "__main__":
    main()
