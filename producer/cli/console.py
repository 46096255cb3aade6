"""What people see: the consoles, tables and progress of all commands."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from schemas.batch import BatchStatus
from schemas.outcome import Status
from schemas.result import JobResult

# Results go to standard output; everything about the work goes to the error output.
# What they print is data: `[x]` and `:x:` are no markup.
out = Console(highlight=False, markup=False, emoji=False)
err = Console(stderr=True, highlight=False, markup=False, emoji=False)

RESULTS_SHOWN = 50
_PLAIN_PROGRESS_EVERY_S = 5.0
_OUTPUT_MAX_CHARS = 60


def say(text: str) -> None:
    """Tell how the work goes on."""
    err.print(Text(text), soft_wrap=True)


def print_json(value: Any) -> None:
    """Print one JSON document for scripts."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=2, default=_jsonable))


class BatchProgress:
    """Shows a batch's progress: a bar on a terminal, else a line every few seconds."""

    def __init__(self, *, rows: int, already: int) -> None:
        """Expect `rows` jobs, `already` of which had ended before."""
        self._rows = rows
        self._already = already
        self._began_s = time.monotonic()
        self._told_s = self._began_s
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=err,
            transient=False,
            disable=not err.is_terminal,
        )
        self._task = self._progress.add_task("rows", total=rows, completed=already, rate="", note="")

    def __enter__(self) -> BatchProgress:
        """Begin to show."""
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        """Show the last state and stop."""
        self._progress.stop()

    def update(self, status: BatchStatus, *, note: str = "") -> None:
        """Show this state."""
        spent_s = time.monotonic() - self._began_s
        per_s = (status.finished - self._already) / spent_s if spent_s > 0 else 0.0
        rate = f"{per_s:.1f} rows/s"
        bad = status.finished - status.counts.get(Status.SUCCEEDED, 0)
        notes = " ".join(part for part in (f"{bad} not succeeded" if bad else "", note) if part)
        self._progress.update(self._task, completed=status.finished, rate=rate, note=notes)
        now_s = time.monotonic()
        if not err.is_terminal and now_s - self._told_s >= _PLAIN_PROGRESS_EVERY_S:
            self._told_s = now_s
            left = f"{(self._rows - status.finished) / per_s:.0f} s left" if per_s > 0 else "time left unknown"
            say(f"{status.finished}/{self._rows} rows, {rate}, {left}{', ' + notes if notes else ''}")


def results_table(results: Iterable[JobResult]) -> Table:
    """Return the first RESULTS_SHOWN results as a table."""
    table = Table(show_lines=False)
    for name in ("row", "custom_id", "status", "output"):
        table.add_column(name, overflow="fold", no_wrap=name in ("row", "status"))
    table.add_column("tokens", justify="right")
    table.add_column("error", overflow="fold")
    for position, result in enumerate(results):
        if position >= RESULTS_SHOWN:
            break
        table.add_row(
            str(position + 1 if result.row is None else result.row + 1),
            Text(result.custom_id or ""),
            Text(result.status.value, style="green" if result.succeeded else "red"),
            Text(_shown(result.output)),
            str(result.prompt_tokens + result.completion_tokens),
            Text(result.error or ""),
        )
    return table


def batches_table(batches: Iterable[BatchStatus]) -> Table:
    """Return batches as a table."""
    table = Table()
    for name in ("batch", "workspace", "state", "what"):
        table.add_column(name, overflow="fold")
    for name in ("done", "succeeded", "other", "requests", "tokens"):
        table.add_column(name, justify="right")
    table.add_column("submitted")
    for status in batches:
        succeeded = status.counts.get(Status.SUCCEEDED, 0)
        table.add_row(
            Text(status.batch_id),
            Text(status.workspace),
            status.state.value,
            Text(status.label),
            f"{status.finished}/{'?' if status.total is None else status.total}",
            str(succeeded),
            str(status.finished - succeeded),
            str(status.requests),
            str(status.prompt_tokens + status.completion_tokens),
            datetime.fromtimestamp(status.created_ms / 1000).astimezone().strftime("%Y-%m-%d %H:%M:%S"),
        )
    return table


def batch_json(status: BatchStatus) -> dict[str, Any]:
    """Return a batch for `--json`."""
    return {**status.model_dump(mode="json"), "finished": status.finished}


def is_interactive() -> bool:
    """Return whether a person sits before both ends."""
    return sys.stdin.isatty() and err.is_terminal


def _shown(output: Any) -> str:
    text = output if isinstance(output, str) else "" if output is None else json.dumps(output, ensure_ascii=False)
    return text if len(text) <= _OUTPUT_MAX_CHARS else text[: _OUTPUT_MAX_CHARS - 1] + "…"


def _jsonable(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else str(value)
