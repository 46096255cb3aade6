"""What a run is told as: tables for people, one JSON document for scripts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from ops.bench import report
from ops.faults.audit import Verdict
from ops.faults.facts import Facts
from ops.faults.plan import Action

FIRST_OFFENDERS = 5


def document(
    *,
    seed: int,
    minutes: float,
    workers: int,
    kills: int,
    met: Mapping[str, Counter[Action]],
    missed: int,
    facts: Facts,
    verdicts: Sequence[Verdict],
    directory: Path | None,
) -> dict[str, Any]:
    """Return everything as a JSON value; `directory` is where the logs are, if they were kept."""
    ended = Counter(row.status for row in facts.jobs)
    return {
        "ok": all(verdict.ok for verdict in verdicts),
        "seed": seed,
        "minutes": minutes,
        "workers": workers,
        "kills": kills,
        "disturbances": {
            part: {action.value: count for action, count in sorted(done.items())} for part, done in met.items()
        },
        "found_nobody": missed,
        "jobs": dict(ended),
        "batches": len(facts.batches),
        "threads": len({(line.workspace, line.thread_id) for line in facts.thread_lines}),
        "calls": len(facts.calls),
        "tool_calls": len(facts.effects),
        "webhooks": len(facts.receipts),
        "audits": [
            {
                "audit": verdict.audit,
                "checked": verdict.checked,
                "breaches": len(verdict.breaches),
                "first": verdict.breaches[:FIRST_OFFENDERS],
                "note": verdict.note,
            }
            for verdict in verdicts
        ],
        "machine": report.machine(),
        "directory": None if directory is None else str(directory),
    }


def show(told: Mapping[str, Any]) -> None:
    """Print the tables."""
    report.out.print(_disturbances(told))
    jobs = ", ".join(f"{count} {status}" for status, count in sorted(told["jobs"].items()))
    report.out.print(
        f"{sum(told['jobs'].values())} jobs ended ({jobs}), {told['batches']} batches, {told['threads']} threads, "
        f"{told['calls']} provider calls, {told['tool_calls']} tool calls, {told['webhooks']} webhooks received\n",
        soft_wrap=True,
    )
    rows = [
        (audit["audit"], audit["checked"], audit["breaches"], "ok" if not audit["breaches"] else "BREACH")
        for audit in told["audits"]
    ]
    report.out.print(report.table(["audit", "checked", "breaches", ""], rows))
    for audit in told["audits"]:
        if audit["note"]:
            report.out.print(f"{audit['audit']}: {audit['note']}", soft_wrap=True)
        for breach in audit["first"]:
            report.out.print(f"  BREACH {breach}", soft_wrap=True)
        if audit["breaches"] > len(audit["first"]):
            report.out.print(f"  … and {audit['breaches'] - len(audit['first'])} more")
    breaches = sum(audit["breaches"] for audit in told["audits"])
    report.out.print(f"\nseed {told['seed']}, {told['minutes']:g} minutes, {told['kills']} kills: {breaches} breaches")
    if told["directory"]:
        report.out.print(f"all logs are in {told['directory']}", soft_wrap=True)


def _disturbances(told: Mapping[str, Any]) -> Table:
    actions = [action for action in Action if any(action.value in done for done in told["disturbances"].values())]
    rows = [
        (part, *(done.get(action.value) for action in actions), sum(done.values()))
        for part, done in told["disturbances"].items()
    ]
    return report.table(["done to", *(action.value for action in actions), "all"], rows)
