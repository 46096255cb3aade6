"""`assistq prune`: delete what ended long ago."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import click
import redis

from producer.cli import access
from producer.cli.console import Steps, listing, out, print_json, say
from schemas.errors import InputError, ProducerError
from schemas.queue_in_use import QueueInUse
from schemas.retention import MIN_AGE, PAUSE_S, Kind, Retention
from schemas.settings import Settings

_AGE = re.compile(r"(\d{1,6})\s*([hdw])")
_UNITS = {"h": "hours", "d": "days", "w": "weeks"}


@click.command()
@click.option("--older-than", metavar="AGE", help="Such as 30d, 12w or 36h. [default: ASSISTQ_RETENTION_DAYS]")
@click.option("--dry-run", is_flag=True, help="Only count what would be deleted.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def prune(*, older_than: str | None, dry_run: bool, as_json: bool) -> None:
    """Delete batches with their jobs, single jobs, threads, webhook deliveries and files of longer ago than AGE.

    What has not ended stays, and so do threads with a younger message, and batches with all their retries while one of
    these is younger, and what a webhook tells of while that is younger or not delivered.
    Deletes in small steps, while workers go on; after an interruption the same command goes on.
    """
    settings = Settings.from_env()
    before = datetime.now(UTC) - _age(older_than, settings)
    total: Counter[Kind] = Counter()
    with access.database(settings) as engine, access.queue(settings) as producer, _queue_answers():
        retention = Retention(
            engine, QueueInUse(producer.connection if producer else None), before=before, dry_run=dry_run
        )
        with Steps("pruning") as progress:
            for step in retention.steps():
                total += step
                progress.update(f"{total.total()} rows")
                if not dry_run:
                    time.sleep(PAUSE_S)
    counts = {kind.value: total[kind] for kind in Kind}
    if as_json:
        print_json({"before": before.isoformat(), "dry_run": dry_run, **counts})
        return
    table = listing("rows", "would be deleted" if dry_run else "deleted")
    for name, count in counts.items():
        table.add_row(name, str(count))
    out.print(table)
    if not dry_run and total and engine.dialect.name == "sqlite":
        say("the space is used again for what comes; SQLite's file itself does not shrink")


def _age(text: str | None, settings: Settings) -> timedelta:
    if text is None:
        if settings.retention_days is None:
            raise click.UsageError("say --older-than, such as 30d, or set ASSISTQ_RETENTION_DAYS")
        return timedelta(days=settings.retention_days)
    match = _AGE.fullmatch(text.strip())
    if match is None:
        raise InputError(
            f"--older-than '{text}' is no age", mend="write a number of hours, days or weeks: 36h, 30d, 12w"
        )
    age = timedelta(**{_UNITS[match[2]]: int(match[1])})
    if age < MIN_AGE:
        raise InputError(
            f"--older-than {text}: what ended less than a day ago is kept, for it may still be asked for",
            mend="write 1d or more",
        )
    return age


@contextmanager
def _queue_answers() -> Iterator[None]:
    try:
        yield
    except redis.RedisError as exc:
        raise ProducerError(f"the queue, which knows what is still in use, does not answer: {exc}; try again") from exc
