"""How both sides reach the SQL database: the engine for a URL, the tables, and what either may make in them."""

from __future__ import annotations

import base64
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event, insert, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, SQLModel, col, create_engine, select

from schemas.table_layout import add_what_is_missing
from schemas.tables import WebhookSecret

SQLITE_BUSY_TIMEOUT_S = 30
# Any constant does; it names assistq's own lock among a PostgreSQL server's advisory locks.
_CREATE_TABLES_LOCK = 7_415_206_551

# A PostgreSQL whose machine is gone is found out within a minute, not a quarter of an hour; one that
# is only slow answers these for itself. What the URL says comes first.
_SERVER_GONE = {"connect_timeout": 10, "keepalives_idle": 20, "keepalives_interval": 5, "keepalives_count": 4}

SECRET_PREFIX = "whsec_"  # noqa: S105 - no secret, what one begins with
SECRET_BYTES = 32


def engine_for(url: str, *, pool_size: int = 10) -> Engine:
    """Return an engine; it connects when it is first used.

    Its errors do not quote what was to be written: prompts and secrets stay out of logs.
    SQLite runs in WAL mode and waits SQLITE_BUSY_TIMEOUT_S for another writer.
    """
    if make_url(url).get_backend_name() != "sqlite":
        return create_engine(
            url,
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_pre_ping=True,
            hide_parameters=True,
            connect_args={name: value for name, value in _SERVER_GONE.items() if name not in make_url(url).query},
        )
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


def signing_secret(session: Session, workspace: str) -> str:
    """Return the workspace's secret, `whsec_…`, adding a random one in the session's transaction if missing.

    Of two that make one at the same time, the primary key lets one win; both return it.
    """
    statement = select(WebhookSecret.secret).where(col(WebhookSecret.workspace) == workspace)
    secret = session.exec(statement).one_or_none()
    if secret is not None:
        return secret
    made = SECRET_PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode("ascii")
    try:
        # A savepoint: losing the race must not undo what the caller's transaction did before.
        with session.begin_nested():
            row = {"workspace": workspace, "secret": made, "created_at": datetime.now(UTC)}
            session.connection().execute(insert(WebhookSecret).values(row))
    except IntegrityError:
        return session.exec(statement).one()
    return made


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()
