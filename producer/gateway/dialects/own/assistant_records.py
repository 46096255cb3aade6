"""The stored assistants that a key may use."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Engine, and_, func, or_
from sqlmodel import Session, col, select

from producer.gateway.access import Caller
from producer.gateway.dialects.own.pages import Place
from schemas.tables import AssistantEnvironment, AssistantVersion


@dataclass(frozen=True, slots=True)
class ListedAssistant:
    """An assistant: its newest version, when that was made, and where its environments point."""

    address: str
    newest: int
    changed_at: datetime
    environments: dict[str, int]


class AssistantRecords:
    """Reads the assistants of one database."""

    def __init__(self, engine: Engine) -> None:
        """Use this engine."""
        self._engine = engine

    def latest(self, caller: Caller, *, place: Place | None, limit: int) -> list[ListedAssistant]:
        """Return assistants after the place, that with the newest version first."""
        address, changed_at = col(AssistantVersion.address), func.max(AssistantVersion.created_at)
        query = (
            select(AssistantVersion.address, func.max(AssistantVersion.version), changed_at)
            .where(AssistantVersion.workspace == caller.workspace)
            .group_by(address)
            .order_by(changed_at.desc(), address.desc())
            .limit(limit)
        )
        if caller.assistants is not None:
            query = query.where(address.in_(sorted(caller.assistants)))
        if place is not None:
            query = query.having(or_(changed_at < place.at, and_(changed_at == place.at, address < place.id)))
        with Session(self._engine) as session:
            found = session.exec(query).all()
            pointers = self._pointers(session, [each for each, _, _ in found])
        return [
            ListedAssistant(address=each, newest=newest, changed_at=at, environments=pointers.get(each, {}))
            for each, newest, at in found
        ]

    def environments(self, address: str) -> dict[str, int]:
        """Return where the environments of the assistant point."""
        with Session(self._engine) as session:
            return self._pointers(session, [address]).get(address, {})

    def _pointers(self, session: Session, addresses: list[str]) -> dict[str, dict[str, int]]:
        found: dict[str, dict[str, int]] = {}
        query = (
            select(AssistantEnvironment)
            .where(col(AssistantEnvironment.address).in_(addresses))
            .order_by(col(AssistantEnvironment.environment))
        )
        for row in session.exec(query):
            found.setdefault(row.address, {})[row.environment] = row.version
        return found
