"""What a benchmark leaves: the machine it ran on, its figures as JSON, and a table of them."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from producer.embedded.capacity import usable_cpus

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "ops" / "bench" / "results"

# A pipe has no width; a table that is read later should not be folded.
_PIPE_WIDTH = 160
out = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
err = Console(stderr=True, highlight=False, markup=False)


def machine() -> dict[str, Any]:
    """Return what the figures depend on, as a JSON value."""
    return {
        "processor": _processor(),
        "cores": usable_cpus(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_before": [round(load, 2) for load in os.getloadavg()],
        "commit": _commit(),
    }


def command(name: str) -> str:
    """Return the command line of this run, as a user types it."""
    return shlex.join([f"ops/bench/{name}", *sys.argv[1:]])


def write(path: Path, *, bench: str, goal: str, cells: Sequence[Mapping[str, Any]], **facts: Any) -> None:
    """Write the figures with the machine and the command, replacing the file whole."""
    document = {
        "bench": bench,
        "command": command(bench),
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "goal": goal,
        **facts,
        "cells": cells,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(document, indent=2) + "\n", "utf-8")
    part.replace(path)


def table(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> Table:
    """Return a plain table; all but the first column stand at the right."""
    made = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for number, name in enumerate(columns):
        made.add_column(name, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        made.add_row(*("–" if value is None else str(value) for value in row))
    return made


def progress() -> Progress:
    """Return a progress display on the error output: bars on a terminal, nothing in a pipe."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        console=err,
        disable=not err.is_terminal,
    )


def say(text: str) -> None:
    """Tell on the error output how the work goes on."""
    err.print(text, soft_wrap=True)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """Return the commit that is checked out, with a + if files differ from it; None outside of git."""
    git = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if changes.stdout.strip() else "")
