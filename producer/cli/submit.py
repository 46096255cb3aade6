"""`assistq submit`: enqueue a file for workers that run elsewhere, or later."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from producer.assistants import Assistants
from producer.cli import access
from producer.cli.batches import tell_no_workers
from producer.cli.console import batch_json, counted, print_json, say, tell_other_end
from producer.cli.duration import expiry_option
from producer.cli.source import Source, read
from producer.cli.spend import cap_option
from producer.client import Producer
from producer.embedded import valkey
from producer.records import Records
from schemas.batch import BatchStatus
from schemas.errors import ProducerError
from schemas.settings import Settings
from schemas.webhook import checked_url


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--assistant", required=True, help="Assistant file (YAML), or the address of a stored assistant.")
@click.option("--webhook", metavar="URL", help="Called once, signed, when the batch ends.")
@cap_option
@expiry_option
@click.option(
    "--skip-bad-rows", is_flag=True, help="Enqueue the good rows; each bad one is in the results with its error."
)
@click.option("--json", "as_json", is_flag=True, help="Print the batch as JSON.")
def submit(
    file: Path,
    assistant: str,
    *,
    webhook: str | None,
    expires_in: timedelta | None,
    spend_cap: str | None,
    skip_bad_rows: bool,
    as_json: bool,
) -> None:
    """Enqueue every row of FILE (CSV, JSONL or Parquet) and print the batch id.

    Submitting the same file for the same assistant again enqueues only what is missing.
    """
    settings = Settings.from_env()
    if webhook is not None:
        checked_url(webhook)
    with access.database(settings) as engine:
        source = read(file, assistant, Assistants(engine), skip_bad_rows=skip_bad_rows)
        status = Records(engine).batch(source.batch_id)
    if status is None:
        status = _enqueued(settings, source, webhook=webhook, expires_in=expires_in, spend_cap=spend_cap)
    else:
        say(f"all {status.total} rows were run before: nothing is enqueued")
    if as_json:
        print_json(batch_json(status))
    else:
        click.echo(status.batch_id)


def _enqueued(
    settings: Settings, source: Source, *, webhook: str | None, expires_in: timedelta | None, spend_cap: str | None
) -> BatchStatus:
    expires_at = None if expires_in is None else datetime.now(UTC) + expires_in
    with valkey.attached(settings) as redis_url:
        producer = Producer.from_settings(settings, redis_url=redis_url)
        try:
            jobs = counted(source.jobs(), total=source.checked.rows, what="enqueuing")
            batch = producer.enqueue_many(
                jobs,
                batch_id=source.batch_id,
                webhook=webhook,
                label=source.path.name,
                expires_at=expires_at,
                spend_cap=spend_cap,
            )
            tell_no_workers(producer)
            status = batch.status()
            tell_other_end(status, expires_at)
        finally:
            producer.close()
    if status is None:
        raise ProducerError(f"batch {source.batch_id} vanished from Redis; submit it again")
    return status
