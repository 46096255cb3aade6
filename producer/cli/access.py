"""How commands reach what is stored: the database, and the queue for as long as they look at it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from producer.client import Producer
from producer.embedded import valkey
from schemas.database import engine_for, ensure_tables
from schemas.errors import AssistqError
from schemas.settings import Settings


@contextmanager
def database(settings: Settings) -> Iterator[Engine]:
    """Yield the engine, with its tables made; AssistqError if the database cannot be reached."""
    try:
        engine = engine_for(settings.effective_database_url)
        ensure_tables(engine)
    except (SQLAlchemyError, OSError) as exc:
        raise _unreachable(settings, exc) from exc
    try:
        yield engine
    except SQLAlchemyError as exc:
        raise _unreachable(settings, exc) from exc
    finally:
        engine.dispose()


@contextmanager
def queue(settings: Settings) -> Iterator[Producer | None]:
    """Yield the queue: the configured one, the embedded one of a running `up` or `run`, or one started for now.

    None where no queue is configured and none was ever made under the data directory.
    """
    if settings.redis_url is None and not (settings.data_dir / "valkey").exists():
        yield None
        return
    with valkey.attached(settings):
        producer = Producer.from_settings(settings)
        try:
            yield producer
        finally:
            producer.close()


@contextmanager
def running_queue(settings: Settings) -> Iterator[Producer]:
    """Yield the queue; AssistqError where there is none."""
    with queue(settings) as producer:
        if producer is None:
            raise AssistqError(
                f"there is no queue: ASSISTQ_REDIS_URL is not set and nothing was ever enqueued under the data "
                f"directory {settings.data_dir}; set ASSISTQ_REDIS_URL or ASSISTQ_DATA_DIR"
            )
        yield producer


def _unreachable(settings: Settings, exc: Exception) -> AssistqError:
    why = " ".join(str(getattr(exc, "orig", None) or exc).split())
    place = "ASSISTQ_DATABASE_URL" if settings.database_url else f"the data directory {settings.data_dir}"
    return AssistqError(f"the database cannot be used: {why}; check {place}")
