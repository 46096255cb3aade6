"""How much of a binding quota the system uses: 1,500 rows through each shape, told the shape or not.

Each cell is one `assistq run` of a CSV in a directory of its own, with an embedded Valkey, SQLite and real worker
processes, against a simulated provider that enforces the limits strictly. The span is the
provider's: from the first arrival to the last end.
"""

from __future__ import annotations

import csv
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import click
from rich.progress import Progress, TaskID

from ops.bench import report, workload
from ops.bench.sim_limits import Quota
from ops.bench.stack import BenchError, Installation, SimServer, forget_own_settings, heed_sigterm, installation
from producer.embedded.child import Child

GOAL = (
    "told the shape: at least 98 % of the ideal; not told: at least 98 % of the ideal without the initial burst; "
    "in both no 429, nothing lost, nothing bought twice"
)
GOAL_SHARE = 0.98
MODEL = "quota"
LATENCY_S = 0.5
_STOPS_WITHIN_S = 60.0
_LOOK_EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class Setting:
    """A provider's limits, and the settings that tell a worker their shape."""

    quota: Quota
    told: dict[str, str]


SETTINGS = {
    "S1": Setting(
        Quota("bucket", rpm=3000, tpm=360_000, capacity_s=1.0), {"ASSISTQ_SHAPE": "bucket", "ASSISTQ_BURST_S": "1"}
    ),
    "S2": Setting(
        Quota("bucket", rpm=2000, tpm=160_000, capacity_s=60.0), {"ASSISTQ_SHAPE": "bucket", "ASSISTQ_BURST_S": "60"}
    ),
    "S3": Setting(Quota("window", rpm=1200, tpm=160_000), {"ASSISTQ_SHAPE": "window"}),
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One run: what it was, and what came of it; `ended` says why it did not come to its end, if so."""

    shape: str
    told: bool
    processes: int
    ideal_s: float
    span_s: float | None
    share_of_ideal: float | None
    refused_429: int
    lost: int
    duplicates: int
    tokens: int
    largest_minute_tokens: int
    largest_minute_requests: int
    tpm: int
    rpm: int
    over_admitted_tokens: float
    in_flight_peak: int
    command_s: float
    ended: str
    goal_met: bool


@click.command(help=__doc__, context_settings={"show_default": True})
@click.option("--shapes", default="S1,S2,S3", help="Which of them, with commas.")
@click.option("--processes", default="1,2,4", help="Numbers of worker processes, with commas.")
@click.option("--threads", type=click.IntRange(1), help="Threads of each worker process.  [default: the product's]")
@click.option("--told/--untold", default=None, help="Only one of both.  [default: both]")
@click.option("--rows", type=click.IntRange(1), default=workload.ROWS)
@click.option("--json", "as_json", is_flag=True, help="Print the JSON instead of the table.")
@click.option("--out", type=click.Path(path_type=Path), default=report.RESULTS / "quota.json")
def main(
    *, shapes: str, processes: str, threads: int | None, told: bool | None, rows: int, as_json: bool, out: Path
) -> None:
    """Run the chosen cells one after the other, and write the figures after each."""
    chosen = [name.strip() for name in shapes.split(",")]
    if unknown := [name for name in chosen if name not in SETTINGS]:
        raise click.UsageError(f"--shapes: there is no {', '.join(unknown)}")
    counts = [int(count) for count in processes.split(",")]
    runs = [
        (shape, is_told, count)
        for shape in chosen
        for is_told in ((True, False) if told is None else (told,))
        for count in counts
    ]
    forget_own_settings()
    heed_sigterm()
    machine = report.machine()
    tokens = workload.tokens(workload.questions(rows))
    _tell_ideals(chosen, rows=rows, tokens=tokens)
    cells: list[Cell] = []
    with report.progress() as progress:
        every = progress.add_task("all cells", total=len(runs))
        for shape, is_told, count in runs:
            cells.append(
                _cell(shape, told=is_told, processes=count, threads=threads, rows=rows, tokens=tokens, shown=progress)
            )
            progress.advance(every)
            report.write(
                out,
                bench="quota",
                goal=GOAL,
                machine=machine,
                rows=rows,
                tokens=tokens,
                latency_s=LATENCY_S,
                cells=[asdict(cell) for cell in cells],
            )
    if as_json:
        click.echo(out.read_text("utf-8"), nl=False)
        return
    report.out.print(_table(cells))
    report.out.print(f"goal: {GOAL}\n{out}", soft_wrap=True)


def _cell(
    shape: str, *, told: bool, processes: int, threads: int | None, rows: int, tokens: int, shown: Progress
) -> Cell:
    setting = SETTINGS[shape]
    quota = setting.quota
    ideal_s = quota.ideal_span_s(requests=rows, tokens=tokens, latency_s=LATENCY_S, burst=told)
    task = shown.add_task(f"{shape} {'told' if told else 'not told'} x{processes}", total=rows)
    settings = {
        "ASSISTQ_RPM": str(quota.rpm),
        "ASSISTQ_TPM": str(quota.tpm),
        "ASSISTQ_PROCESSES": str(processes),
        **({"ASSISTQ_THREADS": str(threads)} if threads else {}),
        **(setting.told if told else {}),
    }
    with SimServer(quota, latency_s=LATENCY_S) as provider:
        with installation({**settings, "ASSISTQ_PROVIDER_BASE_URL": provider.base_url}) as installed:
            began_s = time.monotonic()
            child = _start(installed, rows=rows)
            try:
                ended = _await_end(child, provider, deadline_s=began_s + 4 * ideal_s + 60, shown=shown, task=task)
            finally:
                child.stop(grace_s=_STOPS_WITHIN_S)
            command_s = time.monotonic() - began_s
            succeeded = _succeeded(installed.directory / "results.csv")
        audit = provider.audit(MODEL)
    shown.remove_task(task)
    if audit is None:
        raise BenchError(f"no request arrived; assistq said:\n{ended}")
    span_s = audit["span_s"]
    share = None if span_s is None else ideal_s / span_s
    lost, duplicates = rows - succeeded, max(audit["duplicate_prompts"], audit["duplicate_steps"])
    return Cell(
        shape=shape,
        told=told,
        processes=processes,
        ideal_s=round(ideal_s, 2),
        span_s=None if span_s is None else round(span_s, 2),
        share_of_ideal=None if share is None else round(share, 4),
        refused_429=audit["refused_429"],
        lost=lost,
        duplicates=duplicates,
        tokens=audit["tokens"],
        largest_minute_tokens=audit["largest_minute_tokens"],
        largest_minute_requests=audit["largest_minute_requests"],
        tpm=quota.tpm,
        rpm=quota.rpm,
        over_admitted_tokens=audit["overdraft_tokens"],
        in_flight_peak=audit["in_flight_peak"],
        command_s=round(command_s, 1),
        ended=ended,
        goal_met=share is not None and share >= GOAL_SHARE and not (audit["refused_429"] or lost or duplicates),
    )


def _start(installed: Installation, *, rows: int) -> Child:
    file, assistant = installed.directory / "rows.csv", installed.directory / "assistant.yaml"
    workload.write_rows(file, count=rows)
    workload.write_assistant(assistant, model=MODEL)
    return installed.start("run", file, "--assistant", assistant, "--out", installed.directory / "results.csv")


def _await_end(child: Child, provider: SimServer, *, deadline_s: float, shown: Progress, task: TaskID) -> str:
    """Return once the command has ended or is too late: nothing if it did what it should, else how it was."""
    while child.wait(_LOOK_EVERY_S) is None:
        audit = provider.audit(MODEL)
        shown.update(task, completed=audit["served"] if audit else 0)
        if time.monotonic() > deadline_s:
            return "stopped: it took more than four times the ideal"
    if child.exit_code == 0:
        return ""
    return f"exit status {child.exit_code}: " + "\n".join(child.last_lines())


def _succeeded(results: Path) -> int:
    if not results.exists():
        return 0
    with results.open(encoding="utf-8", newline="") as stream:
        return sum(row["status"] == "succeeded" for row in csv.DictReader(stream))


def _tell_ideals(shapes: list[str], *, rows: int, tokens: int) -> None:
    report.say(f"{rows} rows, {tokens} tokens, {LATENCY_S:g} s a call; ideal spans:")
    for shape in shapes:
        quota = SETTINGS[shape].quota
        burst_s, even_s = (
            quota.ideal_span_s(requests=rows, tokens=tokens, latency_s=LATENCY_S, burst=burst)
            for burst in (True, False)
        )
        report.say(f"  {shape} {burst_s:.1f} s, without the initial burst {even_s:.1f} s")


def _table(cells: list[Cell]) -> object:
    columns = ["shape", "told", "processes", "span s", "ideal s", "% of ideal", "429s", "lost", "duplicates"]
    columns += ["largest minute: tokens", "requests", "over-admitted", "in flight", "goal"]
    return report.table(
        columns,
        (
            (
                cell.shape,
                "yes" if cell.told else "no",
                cell.processes,
                cell.span_s,
                cell.ideal_s,
                None if cell.share_of_ideal is None else f"{cell.share_of_ideal:.1%}",
                cell.refused_429,
                cell.lost,
                cell.duplicates,
                f"{cell.largest_minute_tokens}/{cell.tpm}",
                f"{cell.largest_minute_requests}/{cell.rpm}",
                f"{cell.over_admitted_tokens:.0f}",
                cell.in_flight_peak,
                cell.ended.splitlines()[0] if cell.ended else "met" if cell.goal_met else "missed",
            )
            for cell in cells
        ),
    )


if __name__ == "__main__":
    main()
