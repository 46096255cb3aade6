"""Stored assistants as Langdock's clients know them: by an id, with a name, an emoji and conversation starters.

What runs is a version like any other, `workspace/langdock/slug`; its instruction is a variable's value, for it is
text and no template. Beside it stands a row of what only these clients show. An assistant that came another way has
no such row until it is updated here; its id is its address.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, Field
from sqlalchemy import Engine, text
from sqlmodel import Session, col, select

from producer.assistants import Assistants
from producer.gateway.access import Caller
from producer.gateway.problem import Kind, Problem
from schemas.assistant import AssistantConfig
from schemas.errors import InputError
from schemas.tables import AssistantEnvironment, AssistantVersion, LangdockAssistant

PROJECT = "langdock"
INSTRUCTION = "langdock_instruction"
INSTRUCTION_TEMPLATE = f"{{{{ {INSTRUCTION} }}}}"

Change = Callable[[AssistantConfig], AssistantConfig]


class Details(BaseModel):
    """What stands beside the configuration, as it was given."""

    name: str
    emoji: str | None = None
    inputType: Literal["PROMPT", "STRUCTURED"] = "PROMPT"  # noqa: N815 - Langdock's names
    conversationStarters: list[str] = Field(default_factory=list)  # noqa: N815
    inputFields: list[dict[str, Any]] = Field(default_factory=list)  # noqa: N815
    attachments: list[UUID] = Field(default_factory=list)
    canvas: bool = False
    extendedThinking: bool = False  # noqa: N815


@dataclass(frozen=True, slots=True)
class Stored:
    """A stored assistant; `id` is what a client gives as `assistantId`."""

    id: str
    address: str
    details: Details
    config: AssistantConfig
    version: int
    created_at: datetime
    updated_at: datetime

    @property
    def instruction(self) -> str:
        """Return the instruction as it was given."""
        if self.config.instructions == INSTRUCTION_TEMPLATE:
            return str(self.config.variables.get(INSTRUCTION, ""))
        return self.config.instructions


class StoredAssistants:
    """The stored assistants of one database."""

    def __init__(self, engine: Engine, assistants: Assistants) -> None:
        """Use both."""
        self._engine = engine
        self._assistants = assistants

    def find(self, caller: Caller, assistant_id: str) -> Stored:
        """Return the assistant of this id or address; Problem 404 if there is none, 403 if the key may not use it."""
        unknown = Problem(Kind.NOT_FOUND, f"there is no assistant '{assistant_id}'", code="assistant_not_found")
        if not assistant_id.isprintable():  # PostgreSQL would refuse the question
            raise unknown
        row = self._row(caller.workspace, assistant_id)
        address = row.address if row is not None else assistant_id
        if not caller.sees(address):
            raise unknown
        try:
            config, version = self._assistants.config(address)
        except InputError as exc:
            raise unknown from exc
        if not caller.may_use(address):
            raise Problem(
                Kind.FORBIDDEN,
                f"assistant '{assistant_id}' is not shared with this key; `assistq keys share` does",
                code="assistant_not_shared",
            )
        return self._stored(row, config, version)

    def create(self, caller: Caller, config_of: Callable[[str], AssistantConfig], details: Details) -> Stored:
        """Store a new assistant, with the configuration that `config_of` makes of its address."""
        new_id = str(uuid.uuid4())
        address = f"{caller.workspace}/{PROJECT}/{_slug(details.name)}-{new_id[:8]}"
        applied = self._assistants.apply(config_of(address))
        row = _row_of(new_id, address, details, now=datetime.now(UTC))
        with Session(self._engine, expire_on_commit=False) as session:
            session.add(row)
            session.commit()
        return self._stored(row, *self._assistants.config(address, version=applied.version))

    def update(self, found: Stored, change: Change, details: dict[str, Any]) -> Stored:
        """Store a version that the change makes of the newest, and the details that are given."""
        base, at = found.config, found.version
        while True:
            applied = self._assistants.apply(change(base))
            if applied.moved_from in (at, applied.version, None):
                break
            # Somebody stored a version since: the change is made to that one.
            base, at = self._assistants.config(found.address, version=applied.moved_from)[0], applied.version
        now = datetime.now(UTC)
        with self._engine.begin() as connection, Session(connection, expire_on_commit=False) as session:
            # Whoever changes the details reads them first: nobody else may meanwhile.
            if connection.dialect.name == "sqlite":
                connection.execute(text("BEGIN IMMEDIATE"))
            of_it = select(LangdockAssistant).where(LangdockAssistant.address == found.address).with_for_update()
            row = session.exec(of_it).one_or_none()
            if row is None:
                row = _row_of(str(uuid.uuid4()), found.address, found.details, now=now)
                row.created_at = found.created_at
            row.details = Details.model_validate({**row.details, **details}).model_dump(mode="json")
            row.updated_at = now
            session.add(row)
            session.flush()
            session.expunge(row)
        return self._stored(row, *self._assistants.config(found.address, version=applied.version))

    def _row(self, workspace: str, assistant_id: str) -> LangdockAssistant | None:
        key = col(LangdockAssistant.address) if "/" in assistant_id else col(LangdockAssistant.id)
        query = select(LangdockAssistant).where(key == assistant_id, LangdockAssistant.workspace == workspace)
        with Session(self._engine) as session:
            return session.exec(query).one_or_none()

    def _stored(self, row: LangdockAssistant | None, config: AssistantConfig, version: int) -> Stored:
        if row is not None:
            details, times = Details.model_validate(row.details), (row.created_at, row.updated_at)
            return Stored(row.id, row.address, details, config, version, *times)
        details = Details(name=config.assistant.rsplit("/", 1)[1])
        return Stored(config.assistant, config.assistant, details, config, version, *self._times(config.assistant))

    def _times(self, address: str) -> tuple[datetime, datetime]:
        with Session(self._engine) as session:
            first = select(AssistantVersion.created_at).where(AssistantVersion.address == address)
            created_at = session.exec(first.order_by(col(AssistantVersion.version)).limit(1)).one()
            return created_at, session.get_one(AssistantEnvironment, (address, "production")).updated_at


def _row_of(new_id: str, address: str, details: Details, *, now: datetime) -> LangdockAssistant:
    return LangdockAssistant(
        id=new_id,
        workspace=address.split("/", 1)[0],
        address=address,
        details=details.model_dump(mode="json"),
        created_at=now,
        updated_at=now,
    )


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-") or "assistant"
