"""`assistq status`, `results` and `retry`: a batch while it runs, and after."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import cast

import click

from producer.bulk.results import FORMATS, ResultsFormat, write_results
from producer.cli import access
from producer.cli.console import BatchProgress, batch_json, batch_lines, batches_table, out, print_json, say
from producer.cli.duration import expiry_option
from producer.cli.spend import cap_option
from producer.client import Producer
from producer.records import Records
from producer.retry import retry as run_anew
from schemas.batch import BatchStatus
from schemas.errors import InputError, ProducerError
from schemas.settings import Settings
from schemas.webhook import checked_url

_LISTED = 20


@click.command()
@click.argument("batch_id", metavar="[BATCH]", required=False)
@click.option("--watch", is_flag=True, help="Show the progress until the batch ends.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(batch_id: str | None, *, watch: bool, as_json: bool) -> None:
    """Show the counts of BATCH, or the latest batches."""
    if watch and batch_id is None:
        raise click.UsageError("--watch needs a BATCH")
    settings = Settings.from_env()
    with access.database(settings) as engine, access.queue(settings) as producer:
        records = Records(engine)
        if batch_id is None:
            known = _latest(producer, records)
            if as_json:
                print_json([batch_json(each) for each in known])
            else:
                out.print(batches_table(known))
            return
        current = _find(producer, records, batch_id)
        if watch and not current.ended and producer is not None:
            tell_no_workers(producer)
            current = _watch(producer, current)
        retries = _retries(producer, records, batch_id)
        if as_json:
            print_json({**batch_json(current), "retries": [batch_json(each) for each in retries]})
            return
        out.print(batch_lines(current, retries=retries))
        if producer is not None and not current.ended:
            tell_no_workers(producer)
            for fault in producer.lane_faults(current.workspace):
                say(f"standing still ({fault.code}): {fault.reason}")


@click.command()
@click.argument("batch_id", metavar="BATCH")
@click.option(
    "--format", "format_", type=click.Choice(list(FORMATS.values())), help="[default: by the suffix of --out, else csv]"
)
@click.option("--out", "out_path", type=click.Path(path_type=Path), help="File to write; standard output without it.")
def results(batch_id: str, *, format_: str | None, out_path: Path | None) -> None:
    """Write the results of BATCH in the order of its rows, as far as they are there.

    A row that was retried has the result of its last run; name a retry to see what it ran alone.
    """
    settings = Settings.from_env()
    if format_ is None:
        format_ = FORMATS.get(out_path.suffix, "csv") if out_path is not None else "csv"
    stdout = sys.stdout.buffer if format_ == "parquet" else sys.stdout
    if format_ == "parquet" and out_path is None and sys.stdout.isatty():
        raise click.UsageError("--format parquet is nothing to look at; name a file with --out")
    with access.database(settings) as engine:
        records = Records(engine)
        with access.queue(settings) as producer:
            current = _find(producer, records, batch_id)
        count = write_results(records.results(batch_id), out_path or stdout, format=cast("ResultsFormat", format_))
    if out_path is not None:
        say(f"{count} results: {out_path}")
    if not current.ended:
        say(f"the batch has not ended: {count} of {current.total or '?'} rows have a result so far")


@click.command()
@click.argument("batch_id", metavar="BATCH")
@click.option("--webhook", metavar="URL", help="Called once, signed, when the retry ends. [default: that of BATCH]")
@expiry_option
@cap_option
@click.option("--json", "as_json", is_flag=True, help="Print the retry as JSON.")
def retry(
    batch_id: str, *, webhook: str | None, expires_in: timedelta | None, spend_cap: str | None, as_json: bool
) -> None:
    """Run the rows of BATCH that did not succeed anew, as another batch, and print its id.

    BATCH must have ended. `assistq results BATCH` then has each row's last result. An interrupted
    retry goes on with the same command.
    """
    settings = Settings.from_env()
    if webhook is not None:
        checked_url(webhook)
    with access.database(settings) as engine, access.running_queue(settings) as producer:
        retried = run_anew(
            producer,
            Records(engine),
            batch_id,
            webhook=webhook,
            expires_at=None if expires_in is None else datetime.now(UTC) + expires_in,
            spend_cap=None if spend_cap is None else Decimal(spend_cap),
        )
        if retried.left_out:
            say(f"{retried.left_out} rows cannot be run anew: they were rejected, or are not recorded")
        if retried.batch is None:
            say(f"nothing to retry in batch {retried.root}")
            if as_json:
                print_json({"batch_id": None, "retry_of": retried.root, "left_out": retried.left_out})
            return
        say(f"{retried.rows} rows of batch {retried.root} run anew")
        tell_no_workers(producer)
        if as_json:
            status = retried.batch.status()
            if status is None:
                raise ProducerError(f"batch {retried.batch.id} vanished from Redis; retry it again")
            print_json({**batch_json(status), "left_out": retried.left_out})
        else:
            click.echo(retried.batch.id)


def tell_no_workers(producer: Producer) -> None:
    """Say so if nobody works: whoever waits would wait for ever."""
    if producer.capacity() == 0:
        say("no worker runs now: start `assistq up`, or run the file with `assistq run`")


def _find(producer: Producer | None, records: Records, batch_id: str) -> BatchStatus:
    current = producer.batch(batch_id).status() if producer else None
    current = current or records.batch(batch_id)
    if current is None:
        raise InputError(f"batch '{batch_id}' is not known", mend="`assistq status` lists the batches")
    return current


def _retries(producer: Producer | None, records: Records, batch_id: str) -> list[BatchStatus]:
    # The queue first: one that ends in between is in SQL by then.
    unfinished = producer.open_batches() if producer else []
    ended = records.retries_of(batch_id)
    known = {each.batch_id for each in ended}
    return [*ended, *(each for each in unfinished if each.retry_of == batch_id and each.batch_id not in known)]


def _latest(producer: Producer | None, records: Records) -> list[BatchStatus]:
    unfinished = producer.open_batches()[-_LISTED:] if producer else []
    return [*reversed(unfinished), *records.batches(_LISTED)]


def _watch(producer: Producer, current: BatchStatus) -> BatchStatus:
    with BatchProgress(rows=current.total or current.enqueued, already=current.finished) as progress:
        for each in producer.batch(current.batch_id).watch():
            current = each
            faults = producer.lane_faults(current.workspace)
            progress.update(current, note=faults[0].reason if faults else "")
    return current
