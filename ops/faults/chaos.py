"""`ops/chaos`: disturb a running system at random, let it come to its end, and audit what it did."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.progress import Progress, TaskID

from ops.bench import report as bench_report
from ops.bench.stack import forget_own_settings, heed_sigterm
from ops.faults import report
from ops.faults.audit import AUDITS
from ops.faults.facts import now_s
from ops.faults.gather import gather
from ops.faults.perform import Performer
from ops.faults.plan import plan
from ops.faults.settle import settle
from ops.faults.system import System

EXIT_BREACH = 1


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--minutes", type=click.FloatRange(min=0.1), default=20.0, show_default=True, help="How long to disturb.")
@click.option(
    "--seed", type=int, default=1, show_default=True, help="The plan of disturbances, and of jobs, follows from it."
)
@click.option("--workers", type=click.IntRange(2, 4), default=2, show_default=True, help="Worker masters.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of tables.")
@click.option("--keep", is_flag=True, help="Keep the directory with all logs also without a breach.")
def main(*, minutes: float, seed: int, workers: int, as_json: bool, keep: bool) -> None:
    """Kill, stop, restart and cut off every part at random, then audit that nothing was lost or done twice.

    Exit status 0 without a breach, else 1; the directory with all logs is then kept.
    """
    forget_own_settings()
    heed_sigterm()
    with _directory() as kept:
        directory = kept[0]
        told = _run(directory, minutes=minutes, seed=seed, workers=workers)
        if told["ok"] and not keep:
            told["directory"] = None
        else:
            kept.clear()
    if as_json:
        click.echo(json.dumps(told, indent=2))
    else:
        report.show(told)
    sys.exit(0 if told["ok"] else EXIT_BREACH)


def _run(directory: Path, *, minutes: float, seed: int, workers: int) -> dict[str, Any]:
    with bench_report.progress() as shown, System(directory, seed=seed, workers=workers) as system:
        task = shown.add_task("disturbing", total=minutes * 60)
        performer = _disturb(system, minutes=minutes, seed=seed, shown=shown, task=task)
        unsettled = settle(system, tell=lambda text: shown.update(task, description=f"to the end: {text}"))
        lives = system.watch.lives()
        shown.update(task, description="auditing")
        orphans = system.lost_processes()
        orphans += system.end_workers()
        logs = [system.stage.output_of(worker.name) for worker in system.workers]
        facts = gather(system.stage, system.engine, orphans=orphans, unsettled=unsettled, worker_logs=logs)
    verdicts = [audit(facts, lives) for audit in AUDITS]
    return report.document(
        seed=seed,
        minutes=minutes,
        workers=workers,
        kills=performer.kills,
        met=performer.met,
        missed=performer.missed,
        facts=facts,
        verdicts=verdicts,
        directory=directory,
    )


def _disturb(system: System, *, minutes: float, seed: int, shown: Progress, task: TaskID) -> Performer:
    """Carry the plan out while jobs come, then let all parts be in peace."""
    performer = Performer(system)
    system.start_producer()
    began_s = now_s()
    try:
        for disturbance in plan(seed=seed, minutes=minutes):
            _wait_until(system, performer, began_s + disturbance.at_s)
            performer.do(disturbance)
            shown.update(task, completed=now_s() - began_s, description=f"{performer.kills} kills")
        _wait_until(system, performer, began_s + minutes * 60)
    finally:
        performer.go_on(all_of_them=True)
    system.stage.finish_file.touch()
    return performer


def _wait_until(system: System, performer: Performer, at_s: float) -> None:
    while True:
        system.tick()
        performer.go_on()
        if now_s() >= at_s:
            return
        system.pause()


@contextmanager
def _directory() -> Iterator[list[Path]]:
    """Yield a new directory in a list, and remove it in the end if it is still in there, or the run was interrupted."""
    # A short path: that of a Unix socket must stay below some 100 bytes.
    directory = Path(tempfile.mkdtemp(prefix="aq-chaos-", dir="/tmp"))
    kept = [directory]
    try:
        yield kept
    except click.ClickException:
        kept.clear()
        raise
    finally:
        if kept:
            shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
