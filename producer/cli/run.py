"""`assistq run`: everything in one process tree, from a file to a file."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import click

from producer.assistants import Assistants
from producer.bulk import parquet_library
from producer.bulk.results import FORMATS, write_results
from producer.cli import access
from producer.cli.console import (
    BatchProgress,
    batch_json,
    cost_of,
    counted,
    out,
    print_json,
    results_table,
    say,
    tell_other_end,
)
from producer.cli.duration import expiry_option
from producer.cli.main import Terminated
from producer.cli.source import Source, read
from producer.cli.spend import cap_option
from producer.client import Producer
from producer.embedded.procfile import WORKER
from producer.embedded.system import System, running
from producer.handles import BatchHandle
from producer.records import Records
from producer.run_ids import run_id
from schemas.assistant import AssistantConfig, ProviderKind
from schemas.batch import BatchStatus
from schemas.errors import AssistqError, InputError, ProducerError
from schemas.lane import Lane, LaneFault, provider_name
from schemas.lane_config import LaneConfig
from schemas.money import amount, nanos
from schemas.outcome import Code, Status
from schemas.result import JobResult
from schemas.settings import Settings
from schemas.webhook import DeliveryState, checked_url

EXIT_SOME_NOT_SUCCEEDED = 3
EXIT_WALL = 4
# A provider that cannot be reached is given this long: before anything has succeeded, and after.
PATIENCE_AT_FIRST_S = 10.0
PATIENCE_S = 60.0
# The end of the batch starts the first attempt at its webhook, which may take its time-out.
_WEBHOOK_PATIENCE_S = 30.0
_LOOK_EVERY_S = 0.25
_OTHERS_TOLD = 3


@dataclass(frozen=True, slots=True)
class Wall:
    """Why the run stopped although jobs are left."""

    fault: LaneFault


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--assistant", required=True, help="Assistant file (YAML), or the address of a stored assistant.")
@click.option(
    "--out",
    "out_path",
    type=click.Path(path_type=Path),
    help="Results, .csv, .jsonl or .parquet. [default: FILE-results.csv beside FILE]",
)
@click.option("--webhook", metavar="URL", help="Called once, signed, when the batch ends.")
@expiry_option
@cap_option
@click.option("--skip-bad-rows", is_flag=True, help="Run the good rows; each bad one is in the results with its error.")
@click.option("--again", is_flag=True, help="Run all rows anew, after a run of this file that came to its end.")
@click.option("--expect", metavar="COLUMN", help="Compare the outputs with this column of FILE, and show the accuracy.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON instead of tables.")
def run(
    file: Path,
    assistant: str,
    *,
    out_path: Path | None,
    webhook: str | None,
    expires_in: timedelta | None,
    spend_cap: str | None,
    skip_bad_rows: bool,
    again: bool,
    expect: str | None,
    as_json: bool,
) -> None:
    """Run every row of FILE (CSV, JSONL or Parquet) through an assistant and write the results.

    Starts what is not configured: a queue, workers, and without ASSISTQ_PROVIDER_BASE_URL
    the local model. Run the same command again after an interruption: it goes on where it
    stopped and pays for nothing twice.
    """
    began_s = time.monotonic()
    settings = Settings.from_env()
    # Here, a wrong file is one error before anything starts; the workers read it for themselves.
    LaneConfig.load(settings)
    out_path = _results_path(file, out_path)
    if webhook is not None:
        checked_url(webhook)
    with access.database(settings) as engine:
        source = read(file, assistant, Assistants(engine), skip_bad_rows=skip_bad_rows)
        _refuse_no_model(source.config, settings)
        expected = None if expect is None else _expected(source, expect)
        records = Records(engine)
        runs = records.runs_of(source.batch_id)
        before = runs[-1] if runs and not again else None
        if before is not None:
            _tell_before(before, webhook=webhook)
        try:
            status = before or _run_batch(
                settings,
                source,
                ended=[each.batch_id for each in runs],
                again=again,
                webhook=webhook,
                expires_in=expires_in,
                spend_cap=spend_cap,
                records=records,
            )
        except (KeyboardInterrupt, Terminated):
            say("interrupted: every job is kept, run the same command again to go on")
            raise
        if isinstance(status, Wall):
            _tell_wall(status, kind=source.config.provider)
            raise SystemExit(EXIT_WALL)
        status = _written(records, status, out_path)
        accuracy = None if expected is None else _accuracy(expected, records, status.batch_id)
        _report(
            status, records, out_path=out_path, accuracy=accuracy, took_s=time.monotonic() - began_s, as_json=as_json
        )
    if status.counts.get(Status.SUCCEEDED, 0) < status.finished:
        raise SystemExit(EXIT_SOME_NOT_SUCCEEDED)


def _tell_before(before: BatchStatus, *, webhook: str | None) -> None:
    say(f"all {before.total} rows were run before (batch {before.batch_id}); --again runs them anew")
    if before.counts.get(Status.SUCCEEDED, 0) < before.finished:
        say(f"`assistq retry {before.batch_id}` runs those anew that did not succeed")
    if webhook is not None and webhook != before.webhook:
        say(f"nothing is sent to {webhook}: the batch has ended before")


def _written(records: Records, status: BatchStatus, out_path: Path) -> BatchStatus:
    """Write the results, and return the status with their counts: rows may have been retried since it ended."""
    counts: Counter[Status] = Counter()
    counted_results = _counted(records.results(status.batch_id), counts)
    written = write_results(counted_results, out_path, format=FORMATS[out_path.suffix])
    if written < status.finished:
        raise AssistqError(
            f"the database holds the results of {written} of {status.finished} rows: it is not the one of the run, "
            f"or rows were deleted; check ASSISTQ_DATABASE_URL, or run the rows anew with --again"
        )
    return status.model_copy(update={"counts": dict(counts)})


def _counted(results: Iterable[JobResult], counts: Counter[Status]) -> Iterator[JobResult]:
    for result in results:
        counts[result.status] += 1
        yield result


def _run_batch(
    settings: Settings,
    source: Source,
    *,
    ended: Sequence[str],
    again: bool,
    webhook: str | None,
    expires_in: timedelta | None,
    spend_cap: str | None,
    records: Records,
) -> BatchStatus | Wall:
    kind = source.config.provider
    if kind != "openai" and settings.hosted_base_url(kind) is None:
        raise InputError(
            f"assistant {source.config.assistant} is hosted by {kind}, which is not configured",
            mend="set ASSISTQ_AGENT_BASE_URL" if kind == "agent" else f"set ASSISTQ_{kind.upper()}_API_KEY",
        )
    with running(
        settings,
        commands={"worker": WORKER},
        say=say,
        log_dir=settings.data_dir / "log",
        needs_model=kind == "openai",
    ) as system:
        producer = Producer.from_settings(settings, redis_url=system.redis_url)
        try:
            with _second_signal_kills(system):
                lane = _lane(settings, system, source.config)
                if spend_cap is not None:
                    _refuse_no_price(settings, lane)
                return _submit_and_watch(
                    producer,
                    system,
                    source,
                    lane,
                    batch_id=run_id(producer, records, source.batch_id, ended=ended, again=again),
                    webhook=webhook,
                    expires_in=expires_in,
                    spend_cap=spend_cap,
                    records=records,
                )
        finally:
            producer.close()


def _submit_and_watch(
    producer: Producer,
    system: System,
    source: Source,
    lane: Lane,
    *,
    batch_id: str,
    webhook: str | None,
    expires_in: timedelta | None,
    spend_cap: str | None,
    records: Records,
) -> BatchStatus | Wall:
    expires_at = None if expires_in is None else datetime.now(UTC) + expires_in
    before = producer.batch(batch_id).status()
    for other in [each for each in producer.open_batches() if each.batch_id != batch_id][:_OTHERS_TOLD]:
        say(f"the queue holds other work too, which goes on: batch {other.batch_id} ({other.label}), {_done(other)}")
    # A wall that an earlier run met may be gone.
    producer.forget_lane_faults(next(iter(source.jobs_only())))
    if before is not None:
        say(f"going on with batch {batch_id}: {before.finished} of {source.checked.rows} rows are done")
        if spend_cap is not None and nanos(spend_cap) != before.spend_cap_nano:
            kept = (
                "no spend cap" if before.spend_cap_nano is None else f"its spend cap of {amount(before.spend_cap_nano)}"
            )
            say(f"the batch was submitted before and keeps {kept}; --spend-cap counts with the first submission")
    if before is None or before.total is None:
        jobs = counted(source.jobs(), total=source.checked.rows, what="enqueuing")
        batch = producer.enqueue_many(
            jobs,
            batch_id=batch_id,
            webhook=webhook,
            label=source.path.name,
            expires_at=expires_at,
            spend_cap=spend_cap,
        )
    else:
        batch = producer.batch(batch_id)
        if webhook is not None:
            producer.name_webhook(batch_id, webhook)
    tell_other_end(batch.status(), expires_at)
    ended = _watch(producer, batch, system, source, lane, already=before.finished if before else 0)
    if isinstance(ended, BatchStatus) and ended.webhook:
        _await_webhook(records, batch_id)
    return ended


def _watch(
    producer: Producer, batch: BatchHandle, system: System, source: Source, lane: Lane, *, already: int
) -> BatchStatus | Wall:
    at_work = f"{system.processes} processes x {system.in_flight} calls in flight"
    say(f"batch {batch.id}: {source.checked.rows} rows, {at_work}, model {lane.model}")
    last: BatchStatus | None = None
    with BatchProgress(rows=source.checked.rows, already=already) as progress:
        for status in batch.watch(interval_s=_LOOK_EVERY_S):
            system.check()
            fault = None if status.ended else _fault(producer, lane)
            progress.update(status, note=fault.reason if fault else "")
            last = status
            progressed = status.counts.get(Status.SUCCEEDED, 0) > already
            if fault is not None and _is_wall(fault, progressed=progressed):
                return Wall(fault=fault)
    if last is None:
        raise ProducerError(f"batch {batch.id} vanished from Redis")
    return last


def _lane(settings: Settings, system: System, config: AssistantConfig) -> Lane:
    """Return the lane that the rows will be in, as the workers name it."""
    kind = config.provider
    base_url = system.endpoint.base_url if kind == "openai" else settings.hosted_base_url(kind)
    model = config.model or (system.endpoint.model if kind == "openai" else kind)
    return Lane(config.workspace, provider_name(base_url or ""), model or "none")


def _fault(producer: Producer, lane: Lane) -> LaneFault | None:
    with suppress(ProducerError):  # watch() tells how long Redis may be away
        return producer.lane_fault(lane)
    return None


def _done(status: BatchStatus) -> str:
    return f"{status.finished} of {'?' if status.total is None else status.total} rows done"


def _is_wall(fault: LaneFault, *, progressed: bool) -> bool:
    if fault.code is not Code.PROVIDER_UNREACHABLE:
        return True
    stands_s = time.time() - fault.since_ms / 1000
    return stands_s > (PATIENCE_S if progressed else PATIENCE_AT_FIRST_S)


def _tell_wall(wall: Wall, *, kind: ProviderKind) -> None:
    provider = "ASSISTQ_PROVIDER" if kind == "openai" else f"ASSISTQ_{kind.upper()}"
    named = "`model` in the assistant file, ASSISTQ_MODEL"
    if kind != "openai":
        named = "`provider_assistant` and `model` in the assistant file"
    mend = {
        Code.PROVIDER_UNREACHABLE: f"check {provider}_BASE_URL and the network",
        Code.KEY_REFUSED: f"check {provider}_API_KEY",
        Code.MODEL_UNKNOWN: f"check {named} and {provider}_BASE_URL",
        Code.QUOTA_EXHAUSTED: "the account has no credit left",
        Code.RATE_LIMITED: "the provider asks for a long wait",
    }.get(wall.fault.code, "see the provider's words")
    say(f"stopped: {wall.fault.reason}")
    say(f"{mend}. Every job is kept: run the same command again to go on")


def _await_webhook(records: Records, batch_id: str) -> None:
    """Wait until the batch's webhook was attempted once, and tell how it went."""
    deadline_s = time.monotonic() + _WEBHOOK_PATIENCE_S
    while time.monotonic() < deadline_s:
        for delivery in records.deliveries(batch_id=batch_id, limit=1):
            if delivery.state == DeliveryState.DELIVERED:
                say(f"webhook delivered: HTTP {delivery.last_status} from {delivery.url}")
                return
            if delivery.last_error is not None:
                say(f"webhook not delivered: {delivery.last_error}; `assistq up` tries again")
                return
        time.sleep(_LOOK_EVERY_S)
    say("webhook not delivered yet; `assistq up` delivers it")


class _second_signal_kills:  # noqa: N801 - reads as a phrase where it is used
    """After the first Ctrl-C or SIGTERM tells what is waited for; the second one waits no longer."""

    def __init__(self, system: System) -> None:
        self._system = system

    def __enter__(self) -> None:
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        # What is ignored, as Ctrl-C is in a script's background, stays ignored.
        self._before = {number: handler for number, handler in handlers.items() if callable(handler)}
        for number in self._before:
            signal.signal(number, self._first)

    def __exit__(self, *exc: object) -> None:
        if exc[0] is None:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def _first(self, number: int, frame: FrameType | None) -> None:
        for each in self._before:
            signal.signal(each, self._second)
        say("stopping: calls in flight are finished first; once more to stop at once")
        before = self._before[signal.Signals(number)]
        if callable(before):
            before(number, frame)

    def _second(self, _number: int, _frame: FrameType | None) -> None:
        for pid in self._system.supervisor.pids().values():
            # Each child leads a process group of its own, unless it has ended by now.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)


def _refuse_no_model(config: AssistantConfig, settings: Settings) -> None:
    """Refuse before the first row what would fail every row; the local model and a service's assistant need no name."""
    native = config.provider == "openai" and settings.provider_base_url is not None
    if native and config.model is None and settings.model is None:
        raise InputError(
            f"assistant {config.assistant} names no model", mend="write `model:` in its file, or set ASSISTQ_MODEL"
        )


def _refuse_no_price(settings: Settings, lane: Lane) -> None:
    """Refuse a cap that cannot hold: its rows would all fail."""
    if LaneConfig.load(settings).price_of(lane) is None:
        raise InputError(
            f"--spend-cap: there is no price for model {lane.model} at {lane.provider}",
            mend="set one under `prices` in the lanes file (assistq.lanes.yaml, or ASSISTQ_LANES)",
        )


def _results_path(file: Path, out_path: Path | None) -> Path:
    path = out_path or file.with_name(f"{file.stem}-results.csv")
    if path.suffix not in FORMATS:
        raise InputError(f"--out {path}: the format is told by the suffix", mend="name it .csv, .jsonl or .parquet")
    if path.resolve() == file.resolve():
        raise InputError(f"--out {path} would overwrite the input", mend="name another file")
    # Now, not after everything was paid for.
    if path.is_dir():
        raise InputError(f"--out {path} is a directory", mend="name a file in it")
    if not path.parent.is_dir():
        raise InputError(f"--out {path}: there is no directory {path.parent}", mend="create it, or name another file")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"--out {path}: {path.parent} cannot be written to", mend="name another file with --out")
    if FORMATS[path.suffix] == "parquet":
        parquet_library.load(file=f"--out {path}")
    return path


def _expected(source: Source, column: str) -> list[Any]:
    values = [job.variables.get(column) for job in source.jobs_only()]
    if not any(value is not None for value in values):
        raise InputError(
            f"--expect {column}: no such column", file=str(source.path), line=1, mend="name one of the header's columns"
        )
    return values


def _accuracy(expected: list[Any], records: Records, batch_id: str) -> tuple[int, int]:
    """Return how many outputs equal what was expected, of how many rows."""
    right = 0
    for result in records.results(batch_id):
        if result.row is not None and result.succeeded and result.output == expected[result.row]:
            right += 1
    return right, len(expected)


def _report(
    status: BatchStatus,
    records: Records,
    *,
    out_path: Path,
    accuracy: tuple[int, int] | None,
    took_s: float,
    as_json: bool,
) -> None:
    if as_json:
        summary = {**batch_json(status), "out": str(out_path), "took_s": round(took_s, 3)}
        if accuracy is not None:
            summary["accuracy"] = accuracy[0] / accuracy[1]
        print_json(summary)
        return
    out.print(results_table(records.results(status.batch_id)))
    counts = ", ".join(f"{count} {name.value}" for name, count in status.counts.items())
    out.print(f"{status.finished} rows: {counts}")
    if accuracy is not None:
        out.print(f"accuracy: {accuracy[0]} of {accuracy[1]} ({accuracy[0] / accuracy[1]:.0%})")
    cost = f"cost {cost_of(status)}, " if cost_of(status) else ""
    out.print(
        f"{status.requests} requests, {status.prompt_tokens} prompt + {status.completion_tokens} completion tokens, "
        f"{cost}{took_s:.1f} s"
    )
    out.print(f"results: {out_path}", soft_wrap=True)
