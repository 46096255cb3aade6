"""What people see: the consoles, tables and progress of all commands."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from schemas.batch import BatchStatus
from schemas.money import amount
from schemas.outcome import Status
from schemas.result import JobResult

# Results go to standard output; everything about the work goes to the error output.
# What they print is data: `[x]` and `:x:` are no markup.
# A pipe has no width; what is read there later should not be folded.
_PIPE_WIDTH = 160
out = Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
err = Console(stderr=True, highlight=False, markup=False, emoji=False)

Row = TypeVar("Row")

RESULTS_SHOWN = 50
_PLAIN_PROGRESS_EVERY_S = 5.0
# Looking at the clock for each row would take as long as reading it.
_ROWS_A_LOOK = 500
_OUTPUT_MAX_CHARS = 60


def say(text: str) -> None:
    """Tell how the work goes on."""
    err.print(shown(text), soft_wrap=True)


def tell_other_end(status: BatchStatus | None, expires_at: datetime | None) -> None:
    """Say so if the batch does not expire when it was asked to: what it was given first stands."""
    if status is None or expires_at is None or status.expires_ms == int(expires_at.timestamp() * 1000):
        return
    stands = "never" if status.expires_ms is None else f"at {_time(status.expires_ms)}"
    say(f"batch {status.batch_id} was enqueued before: it expires {stands}, as it was told then")


def shown(text: str) -> Text:
    """Return text from outside as it may be shown: what would steer a terminal is replaced."""
    return Text("".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in text))


def listing(*columns: str) -> Table:
    """Return a table to list things in, plain and narrow; only its last column may be broken."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in columns[:-1]:
        table.add_column(name, no_wrap=True)
    table.add_column(columns[-1], overflow="fold")
    return table


def print_json(value: Any) -> None:
    """Print one JSON document for scripts."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=2, default=_jsonable))


def counted(rows: Iterable[Row], *, total: int, what: str) -> Iterator[Row]:
    """Give the rows on and show how many were taken: a bar on a terminal that goes, else a line every few seconds."""
    told_s = time.monotonic()
    progress = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    )
    with progress:
        task = progress.add_task(what, total=total)
        for count, row in enumerate(rows):
            if count % _ROWS_A_LOOK == 0:
                progress.update(task, completed=count)
                if not err.is_terminal and time.monotonic() - told_s >= _PLAIN_PROGRESS_EVERY_S:
                    told_s = time.monotonic()
                    say(f"{what}: {count}/{total} rows")
            yield row


class Steps:
    """Shows how far work of unknown length is: beside a spinner on a terminal, else a line every few seconds."""

    def __init__(self, what: str) -> None:
        """Do `what`."""
        self._what = what
        self._told_s = time.monotonic()
        self._status = err.status(what) if err.is_terminal else None

    def __enter__(self) -> Steps:
        """Begin to show."""
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *exc: object) -> None:
        """Stop."""
        if self._status is not None:
            self._status.stop()

    def update(self, so_far: str) -> None:
        """Show what was done so far."""
        if self._status is not None:
            self._status.update(f"{self._what}: {so_far}")
        elif time.monotonic() - self._told_s >= _PLAIN_PROGRESS_EVERY_S:
            self._told_s = time.monotonic()
            say(f"{self._what}: {so_far}")


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
            shown(result.custom_id or ""),
            Text(result.status.value, style="green" if result.succeeded else "red"),
            shown(_excerpt(result.output)),
            str(result.prompt_tokens + result.completion_tokens),
            shown(result.error or ""),
        )
    return table


def batches_table(batches: Iterable[BatchStatus]) -> Table:
    """Return batches as a table that fits 80 columns."""
    table = listing("batch", "state", "done", "succeeded", "submitted", "file")
    for status in batches:
        table.add_row(
            status.batch_id,
            _state(status),
            f"{status.finished}/{_total(status)}",
            str(status.counts.get(Status.SUCCEEDED, 0)),
            _local(status.created_ms).strftime("%m-%d %H:%M"),
            shown(status.label),
        )
    return table


def batch_lines(status: BatchStatus, *, retries: Iterable[BatchStatus] = ()) -> Table:
    """Return all that is known of one batch, a line each."""
    lines = {
        "batch": status.batch_id,
        "retry of": status.retry_of or "",
        "workspace": status.workspace,
        "file": status.label,
        "submitted": _time(status.created_ms),
        "expires": "" if status.expires_ms is None else _time(status.expires_ms),
        "state": _state(status),
        "done": _done(status),
        "requests": str(status.requests),
        "tokens": f"{status.prompt_tokens} prompt + {status.completion_tokens} completion",
        "cost": cost_of(status),
        "webhook": status.webhook or "",
        "retries": "\n".join(f"{each.batch_id}: {_state(each)}, {_done(each)}" for each in retries),
    }
    table = Table.grid(padding=(0, 2))
    for name, value in lines.items():
        if value:
            table.add_row(name, shown(value))
    return table


def cost_of(status: BatchStatus) -> str:
    """Return what the batch cost, and what is left of its cap; nothing where there is neither."""
    if status.spend_cap_nano is None:
        return amount(status.cost_nano) if status.cost_nano else ""
    # A batch that ended is known by its row, which has the cost alone.
    used = max(status.spent_nano, status.cost_nano)
    held = f", {amount(status.reserved_nano)} held by calls in flight" if status.reserved_nano else ""
    return f"{amount(used)} of {amount(status.spend_cap_nano)}{held}"


def _state(status: BatchStatus) -> str:
    doing = {"paused": status.paused, "cancelling": status.cancelling, "expiring": status.expiring}
    return next((word for word, is_so in doing.items() if is_so), status.state.value)


def _done(status: BatchStatus) -> str:
    counts = ", ".join(f"{count} {name.value}" for name, count in status.counts.items())
    return f"{status.finished}/{_total(status)}{': ' if counts else ''}{counts}"


def _total(status: BatchStatus) -> str:
    return "?" if status.total is None else str(status.total)


def _time(at_ms: int) -> str:
    return _local(at_ms).strftime("%Y-%m-%d %H:%M:%S")


def _local(at_ms: int) -> datetime:
    return datetime.fromtimestamp(at_ms / 1000).astimezone()


def batch_json(status: BatchStatus) -> dict[str, Any]:
    """Return a batch for `--json`."""
    return {**status.model_dump(mode="json"), "finished": status.finished}


def _excerpt(output: Any) -> str:
    text = output if isinstance(output, str) else "" if output is None else json.dumps(output, ensure_ascii=False)
    return text if len(text) <= _OUTPUT_MAX_CHARS else text[: _OUTPUT_MAX_CHARS - 1] + "…"


def _jsonable(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else str(value)
