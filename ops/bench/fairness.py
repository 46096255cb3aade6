"""How long a small workspace waits behind a large one: 100 jobs of B behind 100,000 of A.

A's jobs wait for A's quota, whether they are of one assistant, of 1,000 threads or of 1,000 assistants.
B has a lane of its own with the same limits, which its 100 jobs at once do not exceed. What B waits
is the time from before its jobs are enqueued until their ends are published, less the provider's
latency; the claim wait is the worker's own figure. What A uses of its quota meanwhile is the provider's.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import redis
from rich.progress import Progress

from ops.bench import report, workload
from ops.bench.sim_limits import MINUTE_S, Quota
from ops.bench.stack import BenchError, Installation, SimServer, forget_own_settings, heed_sigterm, installation
from producer.assistants import Assistants
from producer.client import Producer
from schemas import InvokeJob, names
from schemas.assistant import AssistantConfig, TemplateMessage
from schemas.chat import Message
from schemas.database import engine_for, ensure_tables

GOAL = "p95 of B's wait at most 1 s above its service time, while A uses at least 98 % of its quota"
GOAL_WAIT_S, GOAL_SHARE = 1.0, 0.98

# A's calls cost some 160 tokens, so that its tokens bind, 38 calls a second. B's 100 requests
# and 100 small calls are within what a lane may do in its first second.
QUOTA = Quota("bucket", rpm=9000, tpm=360_000, capacity_s=1.0)
LATENCY_S = 0.5
A_MODEL, B_MODEL = "a-model", "b-model"
THREADS_OF_A = ASSISTANTS_OF_A = 1000
_B_MAX_TOKENS = 20

# B comes this long after A has reached its pace.
_SETTLED_CALLS = 200
_SETTLES_WITHIN_S = 120.0
_BEFORE_B_S = 5.0
_B_ENDS_WITHIN_S = 120.0
_LOOK_EVERY_S = 0.25


@dataclass(frozen=True, slots=True)
class Waits:
    """Waits in seconds."""

    p50_s: float
    p95_s: float
    max_s: float

    @classmethod
    def of(cls, waits_s: Sequence[float]) -> Waits | None:
        """Return the waits at these shares of the jobs (nearest rank); None of no jobs."""
        if not waits_s:
            return None
        ordered = sorted(waits_s)
        p50_s, p95_s = (ordered[math.ceil(share * len(ordered)) - 1] for share in (0.5, 0.95))
        return cls(round(p50_s, 3), round(p95_s, 3), round(ordered[-1], 3))


@dataclass(frozen=True, slots=True)
class Cell:
    """One variant: B's waits above its service time, and what A used of its quota over `stretch_s`."""

    variant: str
    a_jobs: int
    b_jobs: int
    enqueue_a_s: float
    b_ended: int
    b_wait: Waits | None
    b_claim_wait: Waits | None
    b_refused_429: int
    a_share_of_quota: float
    a_refused_429: int
    a_in_flight_peak: int
    stretch_s: float
    goal_met: bool


@click.command(help=__doc__, context_settings={"show_default": True})
@click.option("--variants", default="assistant,threads,assistants", help="How A's jobs are split, with commas.")
@click.option("--a-jobs", type=click.IntRange(1), default=100_000)
@click.option("--b-jobs", type=click.IntRange(1), default=100)
@click.option("--processes", type=click.IntRange(1), default=2, help="Worker processes.")
@click.option("--threads", type=click.IntRange(1), help="Threads of each.  [default: the product's]")
@click.option("--stretch-s", type=click.FloatRange(1), default=40.0, help="How long A's use of its quota is watched.")
@click.option("--json", "as_json", is_flag=True, help="Print the JSON instead of the table.")
@click.option("--out", type=click.Path(path_type=Path), default=report.RESULTS / "fairness.json")
def main(
    *,
    variants: str,
    a_jobs: int,
    b_jobs: int,
    processes: int,
    threads: int | None,
    stretch_s: float,
    as_json: bool,
    out: Path,
) -> None:
    """Run the chosen variants one after the other, and write the figures after each."""
    chosen = [name.strip() for name in variants.split(",")]
    if unknown := [name for name in chosen if name not in JOB_OF_A]:
        raise click.UsageError(f"--variants: there is no {', '.join(unknown)}")
    forget_own_settings()
    heed_sigterm()
    machine = report.machine()
    settings = {
        "ASSISTQ_RPM": str(QUOTA.rpm),
        "ASSISTQ_TPM": str(QUOTA.tpm),
        "ASSISTQ_PROCESSES": str(processes),
        **({"ASSISTQ_THREADS": str(threads)} if threads else {}),
    }
    cells: list[Cell] = []
    with report.progress() as progress:
        for variant in chosen:
            with (
                SimServer(QUOTA, latency_s=LATENCY_S) as provider,
                installation({**settings, "ASSISTQ_PROVIDER_BASE_URL": provider.base_url}) as installed,
            ):
                cells.append(
                    _cell(
                        variant,
                        provider=provider,
                        installed=installed,
                        a_jobs=a_jobs,
                        b_jobs=b_jobs,
                        stretch_s=stretch_s,
                        shown=progress,
                    )
                )
            report.write(
                out,
                bench="fairness",
                goal=GOAL,
                machine=machine,
                quota=asdict(QUOTA),
                processes=processes,
                latency_s=LATENCY_S,
                cells=[asdict(cell) for cell in cells],
            )
    if as_json:
        click.echo(out.read_text("utf-8"), nl=False)
        return
    report.out.print(_table(cells))
    report.out.print(f"goal: {GOAL}\n{out}", soft_wrap=True)


def _cell(
    variant: str,
    *,
    provider: SimServer,
    installed: Installation,
    a_jobs: int,
    b_jobs: int,
    stretch_s: float,
    shown: Progress,
) -> Cell:
    task = shown.add_task(f"A's jobs: {variant}", total=a_jobs)
    _store_assistants(installed.settings.effective_database_url, count=ASSISTANTS_OF_A)
    with installed.up() as producer:
        began_s = time.monotonic()
        producer.enqueue_many(_jobs_of_a(variant, a_jobs, on_each=lambda: shown.advance(task)))
        enqueue_a_s = time.monotonic() - began_s
        before = _settled(provider)
        shown.update(task, description=f"{variant}: A at its pace", total=stretch_s, completed=0)
        _pass(_BEFORE_B_S, shown, task)
        b_waits_s = _run_b(producer, installed.settings.effective_redis_url, count=b_jobs)
        _pass(before["now_s"] + stretch_s - provider.report()["now_s"], shown, task)
        after = provider.report()
    a_before, a_after = before["models"][A_MODEL], after["models"][A_MODEL]
    shown.remove_task(task)
    watched_s = after["now_s"] - before["now_s"]
    share = max(
        (a_after["tokens"] - a_before["tokens"]) / QUOTA.tpm,
        (a_after["arrived"] - a_after["refused_429"] - a_before["arrived"] + a_before["refused_429"]) / QUOTA.rpm,
    ) / (watched_s / MINUTE_S)
    waits = Waits.of(b_waits_s)
    return Cell(
        variant=variant,
        a_jobs=a_jobs,
        b_jobs=b_jobs,
        enqueue_a_s=round(enqueue_a_s, 1),
        b_ended=len(b_waits_s),
        b_wait=waits,
        b_claim_wait=Waits.of(list(_claim_waits_s(installed.log))),
        b_refused_429=after["models"][B_MODEL]["refused_429"],
        a_share_of_quota=round(share, 4),
        a_refused_429=a_after["refused_429"],
        a_in_flight_peak=a_after["in_flight_peak"],
        stretch_s=round(watched_s, 1),
        goal_met=len(b_waits_s) == b_jobs and waits is not None and waits.p95_s <= GOAL_WAIT_S and share >= GOAL_SHARE,
    )


# --- what is enqueued ---------------------------------------------------------------------

JOB_OF_A: dict[str, Callable[[int], InvokeJob]] = {
    "assistant": lambda _: InvokeJob(assistant="a/bench/a0"),
    "threads": lambda number: InvokeJob(assistant="a/bench/a0", thread_id=f"t{number % THREADS_OF_A}"),
    "assistants": lambda number: InvokeJob(assistant=f"a/bench/a{number % ASSISTANTS_OF_A}"),
}


def _jobs_of_a(variant: str, count: int, *, on_each: Callable[[], None]) -> Iterator[InvokeJob]:
    for number, question in enumerate(workload.questions(count)):
        yield JOB_OF_A[variant](number).model_copy(update={"variables": {"question": question}})
        on_each()


def _jobs_of_b(count: int) -> list[InvokeJob]:
    return [
        InvokeJob(assistant="b/bench/b", id=f"b-{number}", messages=(Message(role="user", content=f"No {number}?"),))
        for number in range(count)
    ]


def _store_assistants(database_url: str, *, count: int) -> None:
    question = TemplateMessage(role="user", content="{{ question }}")
    engine = engine_for(database_url)
    try:
        ensure_tables(engine)
        stored = Assistants(engine)
        for number in range(count):
            stored.apply(
                AssistantConfig(
                    assistant=f"a/bench/a{number}",
                    model=A_MODEL,
                    instructions=workload.INSTRUCTIONS,
                    template=(question,),
                    max_tokens=workload.MAX_TOKENS,
                    # A thread's past would make its later jobs dearer.
                    history_tokens=1,
                )
            )
        stored.apply(
            AssistantConfig(assistant="b/bench/b", model=B_MODEL, instructions="Be brief.", max_tokens=_B_MAX_TOKENS)
        )
    finally:
        engine.dispose()


# --- what is watched ----------------------------------------------------------------------


def _settled(provider: SimServer) -> dict[str, Any]:
    """Wait until A's calls flow, and return the provider's report of that moment."""
    deadline_s = time.monotonic() + _SETTLES_WITHIN_S
    while time.monotonic() < deadline_s:
        found = provider.report()
        if found["models"].get(A_MODEL, {}).get("served", 0) >= _SETTLED_CALLS:
            return found
        time.sleep(_LOOK_EVERY_S)
    raise BenchError(f"A's calls do not flow after {_SETTLES_WITHIN_S:g} s")


def _pass(seconds: float, shown: Progress, task: Any) -> None:
    until_s = time.monotonic() + seconds
    while (left_s := until_s - time.monotonic()) > 0:
        pause_s = min(_LOOK_EVERY_S, left_s)
        time.sleep(pause_s)
        shown.advance(task, pause_s)


def _run_b(producer: Producer, redis_url: str, *, count: int) -> list[float]:
    """Enqueue B's jobs, and return of each that ended how long it waited beyond its service time, in seconds."""
    jobs = _jobs_of_b(count)
    with _ends(redis_url, [str(job.id) for job in jobs]) as ended_s:
        began_s = time.monotonic()
        producer.enqueue_many(jobs)
        while len(ended_s) < count and time.monotonic() < began_s + _B_ENDS_WITHIN_S:
            time.sleep(_LOOK_EVERY_S)
        return [at_s - began_s - LATENCY_S for at_s in ended_s.values()]


@contextmanager
def _ends(redis_url: str, job_ids: Sequence[str]) -> Iterator[dict[str, float]]:
    """Yield a dictionary that gets the monotonic time at which each job's end is published."""
    found: dict[str, float] = {}
    over = threading.Event()
    job_of = {names.done_channel(job_id).encode(): job_id for job_id in job_ids}

    def listen() -> None:
        while not over.is_set():
            message = channel.get_message(timeout=_LOOK_EVERY_S)
            if message is not None:
                found.setdefault(job_of[message["channel"]], time.monotonic())

    with (
        closing(redis.Redis.from_url(redis_url)) as connection,
        connection.pubsub(ignore_subscribe_messages=True) as channel,
    ):
        channel.subscribe(*job_of)
        listener = threading.Thread(target=listen, daemon=True)
        listener.start()
        try:
            yield found
        finally:
            over.set()
            listener.join()


def _claim_waits_s(log: Path) -> Iterator[float]:
    """Yield how long each job of B waited from its enqueueing to its first claim, as the workers logged it."""
    seen = set()
    with log.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if '"job_started"' in line and '"workspace": "b"' in line:
                event = json.loads(line[line.index("{") :])
                if event["job_id"] not in seen:
                    seen.add(event["job_id"])
                    yield event["waited_s"]


def _table(cells: list[Cell]) -> object:
    columns = ["A's jobs", "B: wait p50 s", "p95", "max", "claim wait p50 s", "p95", "max", "ended"]
    columns += ["A: % of quota", "429s", "in flight", "goal"]
    return report.table(
        columns,
        (
            (
                f"{cell.a_jobs}, {cell.variant}",
                *_shown(cell.b_wait),
                *_shown(cell.b_claim_wait),
                f"{cell.b_ended}/{cell.b_jobs}",
                f"{cell.a_share_of_quota:.1%}",
                cell.a_refused_429 + cell.b_refused_429,
                cell.a_in_flight_peak,
                "met" if cell.goal_met else "missed",
            )
            for cell in cells
        ),
    )


def _shown(waits: Waits | None) -> tuple[float | None, ...]:
    return (None, None, None) if waits is None else (waits.p50_s, waits.p95_s, waits.max_s)


if __name__ == "__main__":
    main()
