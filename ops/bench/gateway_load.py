"""The gateway under a mix of all that callers do, for minutes: no error that is none of theirs, and nothing that grows.

Calls and streams of every dialect, jobs, their events and waits, lists, uploads, clients that leave in the middle and
wrong requests (gateway_mix.py), against `python -m producer.gateway`, workers, Valkey, and a simulated provider.
Memory is the mean of the second quarter of the time against that of the last.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import click
from redis import Redis

from ops.bench import report
from ops.bench.gateway_mix import ADDRESS, MODEL, WORKSPACE, Mix
from ops.bench.gateway_process import GatewayProcess, key_of, served
from ops.bench.overhead import NO_LIMITS
from ops.bench.stack import BenchError, Installation, SimServer, forget_own_settings, heed_sigterm, installation
from producer.assistants import Assistants
from schemas import names
from schemas.assistant import AssistantConfig
from schemas.database import engine_for, ensure_tables

GOAL = "2 minutes: no unexpected answer; memory, file descriptors and connections flat; nothing left in Redis"
_EVERY_S = 1.0
_SETTLES_WITHIN_S = 60.0
# What a job leaves only while it has not ended, or while somebody waits for it.
_PASSING = ("job:*", "line:*", "drain:*", "draining", "leases", "thread:*", "entering:*", "snoozed", "journal:*")


@click.command(help=__doc__)
@click.option("--seconds", default=120.0, show_default=True)
@click.option("--at-once", default=32, show_default=True, help="Callers.")
@click.option("--service-s", default=0.05, show_default=True, help="What the provider takes for a call.")
@click.option("--out", type=click.Path(path_type=Path), default=report.RESULTS / "gateway-load.json")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def main(*, seconds: float, at_once: int, service_s: float, out: Path, as_json: bool) -> None:
    """Run the benchmark."""
    heed_sigterm()
    forget_own_settings()
    machine = report.machine()
    settings = {"ASSISTQ_RPM": str(NO_LIMITS.rpm), "ASSISTQ_TPM": str(NO_LIMITS.tpm)}
    settings |= {"ASSISTQ_PROCESSES": "2", "ASSISTQ_HTTP_PORT": "0"}
    with (
        SimServer(NO_LIMITS, latency_s=service_s) as provider,
        installation({**settings, "ASSISTQ_PROVIDER_BASE_URL": provider.base_url}) as installed,
        installed.up(),
        served(installed) as gateway,
        Redis.from_url(installed.settings.effective_redis_url) as redis,
    ):
        _store_assistant(installed)
        key = key_of(installed, WORKSPACE)
        found = asyncio.run(_loaded(gateway, redis, key, seconds=seconds, at_once=at_once))
        log = (installed.directory / "gateway.log").read_text("utf-8")
    crashes = [line for line in log.splitlines() if "request_crashed" in line or "Traceback" in line]
    found["crashes_logged"] = len(crashes)
    found["crashes_first"] = crashes[:5]
    report.write(out, bench="gateway_load", goal=GOAL, machine=machine, service_s=service_s, cells=[found])
    if as_json:
        click.echo(out.read_text("utf-8"), nl=False)
    else:
        told = [name for name, value in found.items() if not isinstance(value, list | dict)]
        report.out.print(report.table(("figure", "value"), [(name, found[name]) for name in told]))
        report.out.print(f"goal: {GOAL}\n{out}", soft_wrap=True)
    if found["unexpected"] or found["crashes_logged"]:
        raise BenchError("unexpected:\n" + "\n".join([*found["unexpected_first"], *crashes[:5]]))


async def _loaded(gateway: GatewayProcess, redis: Redis, key: str, *, seconds: float, at_once: int) -> dict[str, Any]:
    samples: list[dict[str, float]] = []
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=60)
    headers = {"authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(connector=connector, headers=headers, timeout=timeout) as session:
        mix = Mix(session, gateway.url)
        until_s = time.monotonic() + seconds

        async def caller() -> None:
            while time.monotonic() < until_s:
                await mix.one()

        async def watch() -> None:
            while time.monotonic() < until_s:
                samples.append(await asyncio.to_thread(_sample, gateway, redis))
                await asyncio.sleep(_EVERY_S)

        began_s = time.monotonic()
        await asyncio.gather(watch(), *(caller() for _ in range(at_once)))
        took_s = time.monotonic() - began_s
    settled_s = time.monotonic()
    while (left := _left(redis)) and time.monotonic() < settled_s + _SETTLES_WITHIN_S:  # noqa: ASYNC110 - Redis tells nobody that a key has gone
        await asyncio.sleep(0.2)
    quarter = len(samples) // 4
    found: dict[str, Any] = {
        "seconds": round(took_s, 1),
        "requests": mix.answers.total(),
        "requests_per_s": round(mix.answers.total() / took_s, 1),
        "unexpected": len(mix.wrong),
    }
    for name in samples[0]:
        early, late = (
            round(statistics.mean(each[name] for each in some), 1)
            for some in (samples[quarter : 2 * quarter], samples[-quarter:])
        )
        found |= {f"{name}_second_quarter": early, f"{name}_last_quarter": late}
    after = await asyncio.to_thread(_sample, gateway, redis)
    return found | {
        **{f"{name}_after": value for name, value in after.items()},
        "open_requests_after": gateway.open_requests(),
        "left_in_redis": left,
        "answers": {f"{kind} {status}": count for (kind, status), count in sorted(mix.answers.items())},
        "unexpected_kinds": Counter(each.partition(":")[0] for each in mix.wrong),
        "unexpected_first": mix.wrong[:20],
        "memory_mb": [each["memory_mb"] for each in samples],
    }


def _sample(gateway: GatewayProcess, redis: Redis) -> dict[str, float]:
    return {
        "memory_mb": gateway.memory_mb(),
        "files": gateway.files(),
        "redis_connections": redis.info("clients")["connected_clients"],
        "channels": len(redis.pubsub_channels(names.done_channel("*"))),
    }


def _left(redis: Redis) -> list[str]:
    found = [key.decode() for each in _PASSING for key in redis.scan_iter(f"{names.PREFIX}:{each}", count=5000)]
    return found[:20]


def _store_assistant(installed: Installation) -> None:
    engine = engine_for(installed.settings.effective_database_url)
    try:
        ensure_tables(engine)
        config = {"assistant": ADDRESS, "model": MODEL, "instructions": "Be brief."}
        Assistants(engine).apply(AssistantConfig.model_validate(config))
    finally:
        engine.dispose()


if __name__ == "__main__":
    main()
