"""The models that a workspace knows of: the installation's default, and those that its assistants name."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import Engine
from sqlmodel import Session, col, select

from producer.gateway.access import Caller
from schemas.tables import AssistantEnvironment, AssistantVersion

# Nobody knows since when the default model is there.
_LONG_AGO = datetime(2023, 1, 1, tzinfo=UTC)


def models_of(engine: Engine, caller: Caller, *, default: str | None) -> dict[str, datetime]:
    """Return the models by name, with the time since when each is known; of assistants that the caller may use."""
    of_version = (
        col(AssistantVersion.address) == col(AssistantEnvironment.address),
        col(AssistantVersion.version) == col(AssistantEnvironment.version),
    )
    query = (
        select(AssistantVersion)
        .join(AssistantEnvironment, of_version[0] & of_version[1])
        .where(AssistantVersion.workspace == caller.workspace)
    )
    found = {default: _LONG_AGO} if default else {}
    with Session(engine) as session:
        for row in session.exec(query):
            model = row.config.get("model")
            if model and caller.may_use(row.address):
                found[model] = min(row.created_at, found.get(model, row.created_at))
    return dict(sorted(found.items()))
