"""How both sides reach the SQL database: the engine for a URL, and the tables in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event, text
from sqlalchemy.engine import make_url
from sqlmodel import SQLModel, create_engine

import schemas.tables  # noqa: F401 - importing it registers the tables

SQLITE_BUSY_TIMEOUT_S = 30
# Any constant does; it names assistq's own lock among a PostgreSQL server's advisory locks.
_CREATE_TABLES_LOCK = 7_415_206_551


def engine_for(url: str, *, pool_size: int = 10) -> Engine:
    """Return an engine; it connects when it is first used.

    SQLite runs in WAL mode and waits SQLITE_BUSY_TIMEOUT_S for another writer.
    """
    if make_url(url).get_backend_name() != "sqlite":
        return create_engine(url, pool_size=pool_size, max_overflow=pool_size, pool_pre_ping=True)
    database = make_url(url).database
    if database and database != ":memory:":
        Path(database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, connect_args={"timeout": SQLITE_BUSY_TIMEOUT_S})
    event.listen(engine, "connect", _prepare_sqlite)
    return engine


def ensure_tables(engine: Engine) -> None:
    """Create the tables that are missing; safe when several processes start at once."""
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _CREATE_TABLES_LOCK})
        else:
            # An early write lock: two processes that both saw no tables would collide.
            connection.execute(text("BEGIN IMMEDIATE"))
        SQLModel.metadata.create_all(connection)


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()
