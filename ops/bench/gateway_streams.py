"""What idle streams cost the gateway: so many `stream: true` calls whose provider hangs, and whose jobs wait.

All are of one workspace. As many run as the workers let it have places, all others stand in its line. Beside them
another workspace makes normal calls. Then all clients leave at once, and every job has to end: those that wait at once,
those that run with their call. It is done twice, to see what stays. Client, servers and workers share this machine.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import aiohttp
import click
from redis import Redis

from ops.bench import report
from ops.bench.gateway_process import GatewayProcess, key_of, served
from ops.bench.held_streams import allow_files, chat_request, held
from ops.bench.overhead import NO_LIMITS
from ops.bench.stack import BenchError, SimServer, forget_own_settings, heed_sigterm, installation
from schemas import names

GOAL = "10,000 idle streams: normal calls beside them are answered, all jobs end when the clients leave, nothing stays"
_HELD = "held"
_WITHIN_S = 300.0
_LOOK_EVERY_S = 0.2
_IDLE = "Wait."


@dataclass(frozen=True, slots=True)
class Round:
    """One round. `cpu_…` are shares of a core while all streams idle, `…_mb` is the gateway's RSS."""

    streams: int
    opened_s: float
    before_mb: float
    held_mb: float
    kb_per_stream: float
    after_mb: float
    cpu_gateway: float
    cpu_valkey: float
    beside_calls: int
    beside_max_ms: float
    files_before: int
    files_held: int
    files_after: int
    requests_closed_s: float
    waiting_ended_s: float
    running_at_end: int
    channels_left: int
    jobs_left: int


@click.command(help=__doc__)
@click.option("--streams", default=10_000, show_default=True)
@click.option("--rounds", default=2, show_default=True)
@click.option("--idle-s", default=20.0, show_default=True, help="How long they idle while processor time is measured.")
@click.option("--beside", default=40, show_default=True, help="Normal calls, one after the other.")
@click.option("--out", type=click.Path(path_type=Path), default=report.RESULTS / "gateway-streams.json")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def main(*, streams: int, rounds: int, idle_s: float, beside: int, out: Path, as_json: bool) -> None:
    """Run the benchmark."""
    heed_sigterm()
    forget_own_settings()
    allow_files(streams)
    machine = report.machine()
    settings = {"ASSISTQ_RPM": str(NO_LIMITS.rpm), "ASSISTQ_TPM": str(NO_LIMITS.tpm)}
    settings |= {"ASSISTQ_PROCESSES": "2", "ASSISTQ_HTTP_PORT": "0"}
    with (
        SimServer(NO_LIMITS, "--held-model", _HELD) as provider,
        installation({**settings, "ASSISTQ_PROVIDER_BASE_URL": provider.base_url}) as installed,
        installed.up() as producer,
        served(installed) as gateway,
        Redis.from_url(installed.settings.effective_redis_url) as redis,
    ):
        capacity = producer.capacity()
        keys = {workspace: key_of(installed, workspace) for workspace in ("idle", "busy")}
        requests = [
            chat_request(keys["idle"], {"model": _HELD, "stream": True, "messages": [_said(number)]})
            for number in range(streams)
        ]
        made = []
        for number in range(rounds):
            report.say(f"round {number + 1} of {rounds}: {streams} streams, {capacity} places in the workers")
            round_ = _round(
                gateway,
                provider,
                redis,
                requests,
                capacity=capacity,
                key=keys["busy"],
                idle_s=idle_s,
                beside=beside,
            )
            made.append(asyncio.run(round_))
    report.write(
        out,
        bench="gateway_streams",
        goal=GOAL,
        machine=machine,
        capacity=capacity,
        cells=[asdict(each) for each in made],
    )
    if as_json:
        click.echo(out.read_text("utf-8"), nl=False)
        return
    columns = ("streams", "KB a stream", "MB before", "held", "after", "cpu", "beside max ms", "ended s", "left")
    rows = [
        (r.streams, r.kb_per_stream, r.before_mb, r.held_mb, r.after_mb, r.cpu_gateway, r.beside_max_ms,
         r.waiting_ended_s, r.jobs_left + r.channels_left)
        for r in made
    ]  # fmt: skip
    report.out.print(report.table(columns, rows))
    report.out.print(f"goal: {GOAL}\n{out}", soft_wrap=True)


def _said(number: int) -> dict[str, str]:
    return {"role": "user", "content": f"{_IDLE} {number}"}


async def _round(
    gateway: GatewayProcess,
    provider: SimServer,
    redis: Redis,
    requests: list[bytes],
    *,
    capacity: int,
    key: str,
    idle_s: float,
    beside: int,
) -> Round:
    await _beside(gateway, key, beside)
    before_mb, files_before = gateway.memory_mb(), gateway.files()
    began_s = time.monotonic()
    async with held(gateway.address, requests) as streams:
        await _until(lambda: _jobs(redis) >= len(requests), what="every job is in the queue")
        opened_s = time.monotonic() - began_s
        cpu_s, valkey_s, since_s = gateway.cpu_s(), _valkey_cpu_s(redis), time.monotonic()
        await asyncio.sleep(idle_s)
        span_s = time.monotonic() - since_s
        cpu = (gateway.cpu_s() - cpu_s) / span_s
        valkey = (_valkey_cpu_s(redis) - valkey_s) / span_s
        held_mb, files_held = gateway.memory_mb(), gateway.files()
        slowest_s = await _beside(gateway, key, beside)
        ended = [bytes(stream.received[:300]) for stream in streams if stream.answered.done()]
        if ended:
            raise BenchError(f"{len(ended)} streams did not idle: {ended[0]!r}")
    left_s = time.monotonic()
    await _until(lambda: gateway.open_requests() == 0, what="every request is closed")
    closed_s = time.monotonic() - left_s
    # A call in flight is finished and paid for: what runs ends when its provider answers.
    await _until(lambda: _jobs(redis) <= capacity, what="every job that waited has ended")
    ended_s = time.monotonic() - left_s
    running = _jobs(redis)
    provider.reset()
    await _until(lambda: _jobs(redis) == 0, what="every job has ended")
    # Who was cancelled far from a line's ends leaves a name there, which is passed over.
    await _until(lambda: not redis.keys(names.line("*")), what="no line is left")
    return Round(
        streams=len(requests),
        opened_s=round(opened_s, 1),
        before_mb=before_mb,
        held_mb=held_mb,
        kb_per_stream=round((held_mb - before_mb) * 1000 / len(requests), 1),
        after_mb=gateway.memory_mb(),
        cpu_gateway=round(cpu, 3),
        cpu_valkey=round(valkey, 3),
        beside_calls=beside,
        beside_max_ms=round(slowest_s * 1000, 1),
        files_before=files_before,
        files_held=files_held,
        files_after=gateway.files(),
        requests_closed_s=round(closed_s, 1),
        waiting_ended_s=round(ended_s, 1),
        running_at_end=running,
        channels_left=len(redis.pubsub_channels(names.done_channel("*"))),
        jobs_left=_jobs(redis),
    )


async def _beside(gateway: GatewayProcess, key: str, count: int) -> float:
    """Make normal calls, one after the other; return what the slowest took, in seconds."""
    slowest_s = 0.0
    async with aiohttp.ClientSession(headers={"authorization": f"Bearer {key}"}) as session:
        for number in range(count):
            body = {"model": "beside", "messages": [_said(number)]}
            began_s = time.perf_counter()
            async with session.post(f"{gateway.url}/v1/chat/completions", json=body) as answer:
                if answer.status != 200:
                    raise BenchError(f"HTTP {answer.status}: {await answer.text()}")
                await answer.read()
            slowest_s = max(slowest_s, time.perf_counter() - began_s)
    return slowest_s


def _jobs(redis: Redis) -> int:
    return sum(1 for _ in redis.scan_iter(names.job("*"), count=5000))


def _valkey_cpu_s(redis: Redis) -> float:
    told = redis.info("cpu")
    return float(told["used_cpu_user"]) + float(told["used_cpu_sys"])


async def _until(condition: Callable[[], bool], *, what: str) -> None:
    began_s = time.monotonic()
    deadline_s = began_s + _WITHIN_S
    while not await asyncio.to_thread(condition):
        if time.monotonic() > deadline_s:
            raise BenchError(f"not within {_WITHIN_S:g} s: {what}")
        await asyncio.sleep(_LOOK_EVERY_S)
    report.say(f"after {time.monotonic() - began_s:.1f} s {what}")


if __name__ == "__main__":
    main()
