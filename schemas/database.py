"""How both sides reach the SQL database: the engine for a URL, the tables, and the lock of an endpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.engine import make_url
from sqlmodel import SQLModel, create_engine

import schemas.tables  # noqa: F401 - what ensure_tables creates
from schemas.table_layout import add_what_is_missing

SQLITE_BUSY_TIMEOUT_S = 30
# As long as a worker's lease: who is silent for longer has lost its jobs.
IDLE_IN_TRANSACTION_S = 6.0
# Any constant does; it names assistq's own lock among a PostgreSQL server's advisory locks.
_CREATE_TABLES_LOCK = 7_415_206_551
# The same for what its locks of endpoints are hashed with.
_ENDPOINT_LOCKS = 7_415_206_552

# A PostgreSQL whose machine is gone is found out within a minute, not a quarter of an hour; one that
# is only slow answers these for itself. What the URL says comes first.
_SERVER_GONE = {"connect_timeout": 10, "keepalives_idle": 20, "keepalives_interval": 5, "keepalives_count": 4}


def engine_for(url: str, *, pool_size: int = 10) -> Engine:
    """Return an engine; it connects when it is first used.

    Its errors do not quote what was to be written: prompts and secrets stay out of logs.
    SQLite runs in WAL mode and waits SQLITE_BUSY_TIMEOUT_S for another writer. A PostgreSQL ends a session
    of ours that stands still in a transaction for IDLE_IN_TRANSACTION_S.
    """
    if make_url(url).get_backend_name() != "sqlite":
        engine = create_engine(
            url,
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_pre_ping=True,
            hide_parameters=True,
            connect_args={name: value for name, value in _SERVER_GONE.items() if name not in make_url(url).query},
        )
        if engine.dialect.name == "postgresql":
            event.listen(engine, "connect", _end_idle_transactions)
        return engine
    database = make_url(url).database
    if database and database != ":memory:":
        Path(database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, connect_args={"timeout": SQLITE_BUSY_TIMEOUT_S}, hide_parameters=True)
    event.listen(engine, "connect", _prepare_sqlite)
    return engine


def ensure_tables(engine: Engine) -> None:
    """Create the tables, columns and indexes that are missing; safe when several processes start at once.

    Raises InputError for tables of a release whose layout cannot be brought to this one's.
    """
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _CREATE_TABLES_LOCK})
        else:
            # An early write lock: two processes that both saw no tables would collide.
            connection.execute(text("BEGIN IMMEDIATE"))
        SQLModel.metadata.create_all(connection)
        add_what_is_missing(connection, SQLModel.metadata)


@contextmanager
def endpoint_locked(engine: Engine, workspace: str, url: str) -> Iterator[Connection]:
    """Yield a transaction in which nobody else reads or writes what is kept of this webhook endpoint to change it.

    A lock and not the endpoint's row, because a healthy one has none.
    """
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            # A JSON array, so that no two pairs of names make one text.
            endpoint = {"endpoint": json.dumps([workspace, url]), "seed": _ENDPOINT_LOCKS}
            connection.execute(text("SELECT pg_advisory_xact_lock(hashtextextended(:endpoint, :seed))"), endpoint)
        else:
            connection.execute(text("BEGIN IMMEDIATE"))
        yield connection


def _end_idle_transactions(connection: Any, _record: Any) -> None:
    """Have the server end a session of ours that stands still in a transaction.

    A process that was stopped there holds its rows, and who needs them would wait for it: the worker that took its
    jobs over, or, for a thread of the gateway's, the settling of all.
    """
    with connection.cursor() as cursor:
        cursor.execute(f"SET idle_in_transaction_session_timeout = {int(IDLE_IN_TRANSACTION_S * 1000)}")
    connection.commit()


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()
