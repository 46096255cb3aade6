"""What the queue adds to a synchronous call: through `POST /v1/chat/completions`, and straight to the provider.

Both kinds of call take turns in the same run, against a simulated provider that takes the same time for each,
while a large batch of another workspace waits under its limit and moves. The added time is the difference of the
same percentile of both. The caller, all servers and the workers share this machine.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import aiohttp
import click

from ops.bench import report
from ops.bench.gateway_process import key_of, served
from ops.bench.overhead import NO_LIMITS
from ops.bench.stack import (
    BenchError,
    SimServer,
    forget_own_settings,
    heed_sigterm,
    installation,
)
from producer import Producer
from schemas import InvokeJob
from schemas.assistant import InlineAssistant
from schemas.chat import Message

GOAL = "added to the provider's own time: p50 <= 15 ms, p99 <= 50 ms"
MODEL, BATCH_MODEL = "interactive", "batch"
BATCH_RPM = 600
ROUNDS = 5
_MOVES_S = 3.0
_LANES = f"lanes: [{{model: {BATCH_MODEL}, rpm: {BATCH_RPM}}}]\n"

Call = Callable[[], Awaitable[float]]


@dataclass(frozen=True, slots=True)
class Times:
    """Of one way to the provider: what its calls took, in ms."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float

    @classmethod
    def of(cls, took_s: list[float]) -> Times:
        """Summarize what calls took, in seconds."""
        cuts = statistics.quantiles(took_s, n=100, method="inclusive")
        return cls(*(round(seconds * 1000, 1) for seconds in (cuts[49], cuts[89], cuts[98], max(took_s))))


@dataclass(frozen=True, slots=True)
class Cell:
    """One row of the table: calls of each way, of which so many were made at once."""

    at_once: int
    calls: int
    straight: Times
    gateway: Times
    added_p50_ms: float
    added_p99_ms: float
    batch_waiting: int


@click.command(help=__doc__)
@click.option("--calls", default=200, show_default=True, help="Calls of each way, one after the other.")
@click.option("--calls-at-once", default=960, show_default=True, help="Calls of each way, many at once.")
@click.option("--at-once", default=32, show_default=True, help="How many these are.")
@click.option("--service-s", default=0.5, show_default=True, help="What the provider takes for a call.")
@click.option("--batch-jobs", default=100_000, show_default=True, help="Jobs of the other workspace; 0 for none.")
@click.option("--processes", default=2, show_default=True, help="Worker processes.")
@click.option("--database-url", help="SQLAlchemy URL of an empty database; SQLite if it is not given.")
@click.option("--out", type=click.Path(path_type=Path), default=report.RESULTS / "gateway.json", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def main(
    *,
    calls: int,
    calls_at_once: int,
    at_once: int,
    service_s: float,
    batch_jobs: int,
    processes: int,
    database_url: str | None,
    out: Path,
    as_json: bool,
) -> None:
    """Run the benchmark."""
    heed_sigterm()
    forget_own_settings()
    machine = report.machine()
    settings = {"ASSISTQ_RPM": str(NO_LIMITS.rpm), "ASSISTQ_TPM": str(NO_LIMITS.tpm)}
    settings |= {"ASSISTQ_PROCESSES": str(processes), "ASSISTQ_HTTP_PORT": "0", "ASSISTQ_LANES": "lanes.yaml"}
    if database_url:
        settings["ASSISTQ_DATABASE_URL"] = database_url
    cells: list[Cell] = []
    with (
        SimServer(NO_LIMITS, latency_s=service_s) as provider,
        installation({**settings, "ASSISTQ_PROVIDER_BASE_URL": provider.base_url}) as installed,
    ):
        lanes = installed.directory / "lanes.yaml"
        lanes.write_text(_LANES, "utf-8")
        installed.env["ASSISTQ_LANES"] = str(lanes)
        with installed.up() as producer, served(installed) as gateway:
            if batch_jobs:
                report.say(f"enqueueing {batch_jobs} jobs of another workspace")
                producer.enqueue_many(_batch(batch_jobs))
            key = key_of(installed, "caller", database_url=database_url)
            for many, count in ((1, calls), (at_once, calls_at_once)):
                report.say(f"{count} calls of each way, {many} at once")
                cells.append(asyncio.run(_cell(gateway.url, key, provider, producer, at_once=many, count=count)))
    report.write(
        out,
        bench="gateway",
        goal=GOAL,
        machine=machine,
        database="PostgreSQL" if database_url else "SQLite",
        service_s=service_s,
        batch_jobs=batch_jobs,
        processes=processes,
        cells=[asdict(cell) for cell in cells],
    )
    if as_json:
        click.echo(out.read_text("utf-8"), nl=False)
        return
    columns = ("at once", "calls", "straight p50", "p99", "gateway p50", "p99", "added p50 ms", "added p99 ms")
    rows = [
        (c.at_once, c.calls, c.straight.p50_ms, c.straight.p99_ms, c.gateway.p50_ms, c.gateway.p99_ms, c.added_p50_ms,
         c.added_p99_ms)
        for c in cells
    ]  # fmt: skip
    report.out.print(report.table(columns, rows))
    report.out.print(f"goal: {GOAL}\n{out}", soft_wrap=True)


def _batch(jobs: int) -> Iterator[InvokeJob]:
    assistant = InlineAssistant(workspace="batch", name="batch", model=BATCH_MODEL, instructions="Answer.")
    for number in range(jobs):
        yield InvokeJob(inline=assistant, messages=(Message(role="user", content=f"Row {number}"),))


async def _cell(url: str, key: str, provider: SimServer, producer: Producer, *, at_once: int, count: int) -> Cell:
    ways = {"straight": provider.base_url, "gateway": f"{url}/v1"}
    took_s: dict[str, list[float]] = {way: [] for way in ways}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, headers={"authorization": f"Bearer {key}"}) as session:

        def calls_to(base_url: str) -> Call:
            async def call() -> float:
                body = {"model": MODEL, "messages": [{"role": "user", "content": "Say something."}]}
                began_s = time.perf_counter()
                async with session.post(f"{base_url}/chat/completions", json=body) as answer:
                    text = await answer.text()
                    if answer.status != 200:
                        raise BenchError(f"{base_url}: HTTP {answer.status}: {text}")
                return time.perf_counter() - began_s

            return call

        for base_url in ways.values():
            await _run(calls_to(base_url), at_once=at_once, count=2 * at_once)
        await asyncio.sleep(_MOVES_S)
        for _ in range(ROUNDS):
            for way, base_url in ways.items():
                took_s[way] += await _run(calls_to(base_url), at_once=at_once, count=count // ROUNDS)
    straight, gateway = Times.of(took_s["straight"]), Times.of(took_s["gateway"])
    return Cell(
        at_once=at_once,
        calls=len(took_s["gateway"]),
        straight=straight,
        gateway=gateway,
        added_p50_ms=round(gateway.p50_ms - straight.p50_ms, 1),
        added_p99_ms=round(gateway.p99_ms - straight.p99_ms, 1),
        batch_waiting=sum(lane.batch for lane in producer.lanes.all()),
    )


async def _run(call: Call, *, at_once: int, count: int) -> list[float]:
    """Return what `count` calls took, of which `at_once` are under way at a time."""
    left = iter(range(count))
    took_s: list[float] = []

    async def caller(number: int) -> None:
        # Spread, so that callers do not march in step.
        await asyncio.sleep(number / at_once * 0.1)
        for _ in left:
            took_s.append(await call())  # noqa: PERF401 - others append meanwhile

    await asyncio.gather(*(caller(number) for number in range(at_once)))
    return took_s


if __name__ == "__main__":
    main()
