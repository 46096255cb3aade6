"""What a gateway has in memory, and what calls take that are made beside other work: `python -m ops.bench.beside`.

In a process of its own, so that the work which is measured does not hold the calls up on the caller's side.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import psutil

from ops.bench.stack import STOPS_WITHIN_S, BenchError
from producer.embedded.child import Child

CALLS_EVERY_S = 0.1
_MEMORY_EVERY_S = 0.05
_CALL_WITHIN_S = 60.0


@dataclass(slots=True)
class Beside:
    """Times are seconds since the epoch: of a call's beginning and what it took, and of what was in memory."""

    calls: list[tuple[float, float]] = field(default_factory=list)
    memory_mb: list[tuple[float, float]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def during(self, began_at: float, ended_at: float) -> dict[str, Any]:
        """Return what was measured between these times."""
        took_ms = [took_s * 1000 for at, took_s in self.calls if began_at <= at < ended_at]
        memory = [mb for at, mb in self.memory_mb if began_at <= at < ended_at]
        cuts = statistics.quantiles(took_ms, n=100, method="inclusive") if len(took_ms) > 1 else None
        return {
            "calls": len(took_ms),
            "call_p50_ms": None if cuts is None else round(cuts[49], 1),
            "call_p99_ms": None if cuts is None else round(cuts[98], 1),
            "call_max_ms": round(max(took_ms), 1) if took_ms else None,
            "memory_before_mb": memory[0] if memory else None,
            "memory_peak_mb": max(memory, default=None),
            "memory_after_mb": memory[-1] if memory else None,
        }

    def hear(self, line: str) -> None:
        """Take a line of the measuring process."""
        try:
            told = json.loads(line)
        except ValueError:
            self.faults.append(line)
            return
        if "fault" in told:
            self.faults.append(told["fault"])
        elif "memory_mb" in told:
            self.memory_mb.append((told["at"], told["memory_mb"]))
        else:
            self.calls.append((told["at"], told["took_s"]))


@contextmanager
def measured(*, url: str, key: str, model: str, pid: int) -> Iterator[Beside]:
    """Call the gateway, whose process this is, every CALLS_EVERY_S meanwhile; BenchError if a call failed."""
    beside = Beside()
    child = Child([sys.executable, "-m", "ops.bench.beside", url, key, model, str(pid)], on_line=beside.hear)
    try:
        yield beside
    finally:
        child.stop(grace_s=STOPS_WITHIN_S)
    if beside.faults:
        raise BenchError("calls beside failed:\n" + "\n".join(beside.faults[:5]))


async def _measure(url: str, key: str, model: str, pid: int) -> None:
    headers = {"authorization": f"Bearer {key}"}
    timeout = aiohttp.ClientTimeout(total=_CALL_WITHIN_S)
    body = {"model": model, "messages": [{"role": "user", "content": "Say something."}]}

    async def call() -> None:
        at, began_s = time.time(), time.perf_counter()
        try:
            async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
                text = await answer.text()
        except (aiohttp.ClientError, TimeoutError) as exc:
            _say({"fault": f"{type(exc).__name__}: {exc}"})
            return
        if answer.status == 200:
            _say({"at": at, "took_s": time.perf_counter() - began_s})
        else:
            _say({"fault": f"HTTP {answer.status}: {text}"})

    async def call_on() -> None:
        # Whether or not those before are answered: else the slow ones would be too few.
        while True:
            task = asyncio.create_task(call())
            under_way.add(task)
            task.add_done_callback(under_way.discard)
            await asyncio.sleep(CALLS_EVERY_S)

    under_way: set[asyncio.Task[None]] = set()
    gateway = psutil.Process(pid)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session, asyncio.TaskGroup() as group:
        group.create_task(call_on())
        while True:
            _say({"at": time.time(), "memory_mb": round(gateway.memory_info().rss / 1e6, 1)})
            await asyncio.sleep(_MEMORY_EVERY_S)


def _say(told: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(_measure(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
