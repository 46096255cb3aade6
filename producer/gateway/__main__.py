"""`python -m producer.gateway`: serves the gateway until it is told to stop."""

from __future__ import annotations

import sys

from sqlalchemy.exc import SQLAlchemyError

from producer.client import Producer
from producer.gateway.app import create_app
from producer.gateway.http.server import serve
from schemas import logs
from schemas.database import engine_for, ensure_tables
from schemas.errors import AssistqError
from schemas.settings import Settings


def main() -> None:
    """Serve; exit with 1 where that is not possible."""
    try:
        settings = Settings.from_env()
        _refuse_what_is_not_there(settings)
    except AssistqError as exc:
        sys.exit(f"gateway: {exc}")
    logs.configure(settings)
    if not serve(create_app(settings), settings):
        sys.exit(1)


def _refuse_what_is_not_there(settings: Settings) -> None:
    """Raise AssistqError where the queue or the database cannot be used: one line, before anything is served."""
    Producer.from_settings(settings).close()
    engine = engine_for(settings.effective_database_url)
    try:
        ensure_tables(engine)
    except (SQLAlchemyError, OSError) as exc:
        why = " ".join(str(getattr(exc, "orig", None) or exc).split())
        raise AssistqError(f"the database cannot be used: {why}; check ASSISTQ_DATABASE_URL") from exc
    finally:
        engine.dispose()


if __name__ == "__main__":
    main()
