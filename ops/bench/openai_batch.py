"""What OpenAI's largest batches cost the gateway: 50,000 requests, and a file of 200 MB that is cancelled half-way.

With the official client, against the real gateway and workers and a simulated provider. Meanwhile a call of another
workspace comes every tenth of a second. For each phase: how long it took, what the gateway had in memory, and what
these calls took, beside what they take when the gateway has nothing else to do. The client, all servers and the
workers share this machine.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click
from openai import APIStatusError, OpenAI
from openai.types import Batch
from sqlalchemy import Engine
from sqlmodel import Session

from ops.bench import report
from ops.bench.beside import Beside, measured
from ops.bench.gateway_process import key_of, of_up
from ops.bench.overhead import NO_LIMITS
from ops.bench.stack import BenchError, SimServer, forget_own_settings, heed_sigterm, installation
from producer.gateway.dialects.openai.batching.request_lines import MAX_FILE_BYTES, MAX_REQUESTS
from schemas.database import engine_for
from schemas.tables import OpenAIBatch

GOAL = "memory bounded by pieces, not by the file; calls beside as fast as ever; every request in one of the two files"
MODEL, BESIDE_MODEL = "batch", "beside"
URL: Literal["/v1/chat/completions"] = "/v1/chat/completions"
_IDLE_S = 10.0
_LOOK_EVERY_S = 0.2
_ENDS_WITHIN_S = 3600.0
_COLUMNS = {
    "part": "part",
    "phase": "phase",
    "s": "took_s",
    "MB before": "memory_before_mb",
    "MB peak": "memory_peak_mb",
    "MB after": "memory_after_mb",
    "calls": "calls",
    "p50 ms": "call_p50_ms",
    "p99 ms": "call_p99_ms",
    "max ms": "call_max_ms",
}
_ENDED = {"completed", "failed", "expired", "cancelled"}
# The client reads its whole file at once; the server's answer waits for SQL.
_TIMEOUT_S = 600.0


@dataclass(slots=True)
class Bench:
    """What all parts of a run use, and the rows of its table."""

    client: OpenAI
    engine: Engine
    beside: Beside
    directory: Path
    cells: list[dict[str, Any]]

    def note(self, part: str, phase: str, began_at: float, ended_at: float, **more: Any) -> None:
        """Add a row: the phase from one time to another, in seconds since the epoch."""
        took_s = round(ended_at - began_at, 2)
        cell = {"part": part, "phase": phase, "took_s": took_s, **self.beside.during(began_at, ended_at), **more}
        self.cells.append(cell)
        report.say(f"{part}: {phase}: {took_s} s, {cell['memory_peak_mb']} MB, p99 {cell['call_p99_ms']} ms")

    def upload(self, part: str, file: Path) -> str:
        """Upload the file and return its id."""
        began_at = time.time()
        file_id = self.client.files.create(file=file, purpose="batch").id
        self.note(part, "upload", began_at, time.time(), bytes=file.stat().st_size)
        return file_id

    def begin(self, file_id: str) -> str:
        """Make the batch and return its id."""
        made = self.client.batches.create(input_file_id=file_id, endpoint=URL, completion_window="24h")
        return made.id

    def ended(self, batch_id: str) -> Batch:
        """Return the batch at its end."""
        return self.until(batch_id, lambda batch: batch.status in _ENDED)

    def until(self, batch_id: str, condition: Any) -> Batch:
        """Return the batch once the condition holds of it."""
        deadline_s = time.monotonic() + _ENDS_WITHIN_S
        while not condition(batch := self.client.batches.retrieve(batch_id)):
            if time.monotonic() > deadline_s:
                raise BenchError(f"not ended within {_ENDS_WITHIN_S:g} s: {batch}")
            time.sleep(_LOOK_EVERY_S)
        return batch

    def row(self, batch_id: str) -> OpenAIBatch:
        """Return what SQL says of the batch, with its times to the microsecond."""
        with Session(self.engine) as session:
            row = session.get(OpenAIBatch, batch_id)
        if row is None:
            raise BenchError(f"no batch {batch_id}")
        return row

    def answers(self, part: str, batch: Batch, rows: int) -> None:
        """Download the files; BenchError unless each request is in one of them, once."""
        began_at = time.time()
        counts: dict[str, int] = {}
        custom_ids: set[str] = set()
        for kind, file_id in (("output", batch.output_file_id), ("error", batch.error_file_id)):
            counts[kind] = 0
            if file_id is None:
                continue
            with self.client.files.with_streaming_response.content(file_id) as content:
                for line in content.iter_lines():
                    custom_ids.add(json.loads(line)["custom_id"])
                    counts[kind] += 1
        if sum(counts.values()) != rows or custom_ids != {f"r{number}" for number in range(rows)}:
            raise BenchError(f"{part}: of {rows} requests {counts} are in the files")
        self.note(part, "download", began_at, time.time(), **counts)


@click.command(help=__doc__)
@click.option("--rows", default=MAX_REQUESTS, show_default=True, help="Requests of each batch.")
@click.option("--megabytes", default=MAX_FILE_BYTES >> 20, show_default=True, help="MiB of the large file.")
@click.option("--processes", default=2, show_default=True, help="Worker processes.")
@click.option("--batch-rpm", default=6_000, show_default=True, help="Limit of the batches' model; 0 for none.")
@click.option("--database-url", help="SQLAlchemy URL of an empty database; SQLite if it is not given.")
@click.option("--out", type=click.Path(path_type=Path), default=report.RESULTS / "openai-batch.json", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def main(
    *, rows: int, megabytes: int, processes: int, batch_rpm: int, database_url: str | None, out: Path, as_json: bool
) -> None:
    """Run the benchmark."""
    heed_sigterm()
    forget_own_settings()
    machine = report.machine()
    settings = {"ASSISTQ_RPM": str(NO_LIMITS.rpm), "ASSISTQ_TPM": str(NO_LIMITS.tpm)}
    settings |= {"ASSISTQ_PROCESSES": str(processes), "ASSISTQ_HTTP_PORT": "0"}
    if database_url:
        settings["ASSISTQ_DATABASE_URL"] = database_url
    with (
        SimServer(NO_LIMITS) as provider,
        installation({**settings, "ASSISTQ_PROVIDER_BASE_URL": provider.base_url}) as installed,
    ):
        if batch_rpm:
            lanes = installed.directory / "lanes.yaml"
            lanes.write_text(f"lanes: [{{model: {MODEL}, rpm: {batch_rpm}}}]\n", "utf-8")
            installed.env["ASSISTQ_LANES"] = str(lanes)
        engine = engine_for(database_url or installed.settings.effective_database_url)
        with installed.up():
            gateway = of_up(installed)
            keys = [key_of(installed, workspace, database_url=database_url) for workspace in ("bulk", "beside")]
            client = OpenAI(base_url=f"{gateway.url}/v1", api_key=keys[0], max_retries=0, timeout=_TIMEOUT_S)
            with client, measured(url=gateway.url, key=keys[1], model=BESIDE_MODEL, pid=gateway.pid) as beside:
                bench = Bench(client, engine, beside, installed.directory, [])
                _idle(bench, "before")
                _whole(bench, rows)
                _cancelled(bench, rows, megabytes << 20)
                _refused(bench)
                _idle(bench, "after")
        engine.dispose()
    report.write(
        out,
        bench="openai_batch",
        goal=GOAL,
        machine=machine,
        database="PostgreSQL" if database_url else "SQLite",
        rows=rows,
        processes=processes,
        batch_rpm=batch_rpm or None,
        cells=bench.cells,
    )
    if as_json:
        click.echo(out.read_text("utf-8"), nl=False)
        return
    report.out.print(report.table(_COLUMNS, [[cell.get(name) for name in _COLUMNS.values()] for cell in bench.cells]))
    report.out.print(f"goal: {GOAL}\n{out}", soft_wrap=True)


def _idle(bench: Bench, when: str) -> None:
    began_at = time.time()
    time.sleep(_IDLE_S)
    bench.note("idle", when, began_at, time.time())


def _whole(bench: Bench, rows: int) -> None:
    """Run a batch to its end."""
    part = f"{rows} requests"
    file_id = bench.upload(part, _file(bench.directory / "rows.jsonl", _small(rows)))
    batch = bench.ended(bench.begin(file_id))
    if batch.status != "completed" or batch.request_counts is None or batch.request_counts.completed != rows:
        raise BenchError(f"{part}: {batch}")
    _note_phases(bench, part, bench.row(batch.id))
    bench.answers(part, batch, rows)


def _cancelled(bench: Bench, rows: int, size_bytes: int) -> None:
    """Cancel a batch of a large file once a tenth of it was answered."""
    part = f"{size_bytes >> 20} MiB, cancelled"
    file_id = bench.upload(part, _file(bench.directory / "large.jsonl", _large(rows, size_bytes)))
    batch_id = bench.begin(file_id)
    bench.until(batch_id, lambda batch: batch.status == "in_progress" and batch.request_counts.completed >= rows / 10)
    bench.client.batches.cancel(batch_id)
    batch = bench.ended(batch_id)
    if batch.status != "cancelled":
        raise BenchError(f"{part}: {batch}")
    _note_phases(bench, part, bench.row(batch_id))
    bench.answers(part, batch, rows)


def _refused(bench: Bench) -> None:
    """Send one request, and one byte, too many: each says which."""
    for part, lines in (
        ("a request too many", _small(MAX_REQUESTS + 1)),
        ("a byte too many", _large(100, MAX_FILE_BYTES + 1)),
    ):
        try:
            file_id = bench.upload(part, _file(bench.directory / "refused.jsonl", lines))
        except APIStatusError as exc:
            bench.cells.append({"part": part, "phase": "refused", "error": str(exc)})
            continue
        batch = bench.ended(bench.begin(file_id))
        if batch.status != "failed" or batch.errors is None:
            raise BenchError(f"{part}: {batch}")
        row = bench.row(batch.id)
        told = [fault.model_dump() for fault in batch.errors.data or []]
        bench.note(part, "failed", row.created_at.timestamp(), _at(row.ended_at), errors=told)


def _note_phases(bench: Bench, part: str, row: OpenAIBatch) -> None:
    """Note each phase of a batch that has ended."""
    times = [
        ("validate", row.created_at, row.in_progress_at),
        ("enqueue", row.in_progress_at, row.enqueued_at),
        ("run", row.enqueued_at, row.cancelling_at or row.finalizing_at),
        ("finalize", row.finalizing_at, None if row.cancelling_at else row.ended_at),
        ("cancel and finalize", row.cancelling_at, row.ended_at if row.cancelling_at else None),
    ]
    for phase, began, ended in times:
        # It may be cancelled while its rows are still being enqueued.
        if began is not None and ended is not None and began < ended:
            bench.note(part, phase, _at(began), _at(ended))


def _at(moment: Any) -> float:
    return float(moment.timestamp())


def _small(rows: int) -> Iterator[bytes]:
    for number in range(rows):
        yield _line(number, f"Row {number}: say something about it, in a sentence or two.")


def _large(rows: int, size_bytes: int) -> Iterator[bytes]:
    """Yield lines that have so many bytes together."""
    left = size_bytes
    for number in range(rows):
        empty = len(_line(number, ""))
        yield _line(number, "x" * (left // (rows - number) - empty))
        left -= left // (rows - number)


def _line(number: int, content: str) -> bytes:
    body = {"model": MODEL, "messages": [{"role": "user", "content": content}]}
    request = {"custom_id": f"r{number}", "method": "POST", "url": URL, "body": body}
    return json.dumps(request).encode() + b"\n"


def _file(path: Path, lines: Iterator[bytes]) -> Path:
    with path.open("wb") as file:
        file.writelines(lines)
    return path


if __name__ == "__main__":
    main()
