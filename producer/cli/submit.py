"""`assistq submit`: enqueue a file for workers that run elsewhere, or later."""

from __future__ import annotations

from pathlib import Path

import click

from producer.assistants import Assistants
from producer.cli import access
from producer.cli.console import batch_json, out, print_json
from producer.cli.source import Source, check_rows, load
from producer.client import Producer
from producer.embedded import valkey
from schemas.settings import Settings


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--assistant", required=True, help="Assistant file (YAML), or the address of a stored assistant.")
@click.option("--webhook", metavar="URL", help="Called once, signed, when the batch ends.")
@click.option(
    "--skip-bad-rows", is_flag=True, help="Enqueue the good rows; each bad one is in the results with its error."
)
@click.option("--json", "as_json", is_flag=True, help="Print the batch as JSON.")
def submit(file: Path, assistant: str, *, webhook: str | None, skip_bad_rows: bool, as_json: bool) -> None:
    """Enqueue every row of FILE (CSV or JSONL) and print the batch id.

    Submitting the same file for the same assistant again enqueues only what is missing.
    """
    settings = Settings.from_env()
    with access.database(settings) as engine:
        config, version = load(assistant, Assistants(engine))
        source = Source(
            path=file, config=config, version=version, checked=check_rows(file, config, skip_bad_rows=skip_bad_rows)
        )
    with valkey.attached(settings) as redis_url:
        producer = Producer.from_settings(settings, redis_url=redis_url)
        batch = producer.enqueue_many(source.jobs(), batch_id=source.batch_id, webhook=webhook, label=file.name)
        status = batch.status()
        producer.close()
    if as_json and status is not None:
        print_json(batch_json(status))
    else:
        out.print(batch.id)
