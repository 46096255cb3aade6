"""The stored assistant that a request names, as far as its caller may use it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import Engine
from sqlmodel import Session, col, select

from producer.assistants import Assistants
from producer.gateway.access import Caller
from producer.gateway.parts import Parts
from schemas.assistant import Address, AssistantConfig, checked_environment
from schemas.errors import InputError
from schemas.settings import Settings
from schemas.tables import AssistantEnvironment, AssistantVersion

# What a column holds.
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_ADDRESS: TypeAdapter[str] = TypeAdapter(Address)
PRODUCTION = "production"


@dataclass(frozen=True, slots=True)
class StoredAssistant:
    """One version of an assistant, and since when it is there."""

    config: AssistantConfig
    version: int
    created_at: datetime

    @property
    def address(self) -> str:
        """Return the assistant's address."""
        return self.config.assistant

    def model(self, settings: Settings) -> str | None:
        """Return the model that answers if nobody asks for another; None if none is named anywhere."""
        default = settings.model if self.config.provider == "openai" else self.config.provider
        return self.config.model or default


async def stored_assistant(parts: Parts, caller: Caller, address: str, which: str | None) -> StoredAssistant | None:
    """Return the assistant at the address: its production, else the environment or version that `which` names.

    None for one that is not there, is another workspace's, or is not shared with the key: all look alike.
    """
    return await parts.in_thread(read_stored_assistant, parts.engine, caller, address, which)


def read_stored_assistant(engine: Engine, caller: Caller, address: str, which: str | None) -> StoredAssistant | None:
    """Do as `stored_assistant` does; blocks."""
    return read_version(engine, caller, address, environment=which or PRODUCTION, version=version_in(which))


def read_version(
    engine: Engine, caller: Caller, address: str, *, environment: str, version: int | None
) -> StoredAssistant | None:
    """Return the version of the assistant, else that which the environment points at; None as above. Blocks."""
    try:
        _ADDRESS.validate_python(address)
        checked_environment(environment)
    except (ValidationError, InputError):
        return None
    return _read(engine, address, environment, version) if caller.may_use(address) else None


def version_in(text: str | None) -> int | None:
    """Return the number of a version, None for what is none."""
    return int(text) if text and _VERSION.fullmatch(text) else None


async def shared_assistants(parts: Parts, caller: Caller) -> list[StoredAssistant]:
    """Return the assistants that the caller may use, one for each environment, by address."""
    return [each for each in await parts.in_thread(_all, parts.engine, caller) if caller.may_use(each.address)]


def _read(engine: Engine, address: str, environment: str, version: int | None) -> StoredAssistant | None:
    try:
        config, number = Assistants(engine).config(address, environment=environment, version=version)
    except InputError:
        return None
    with Session(engine) as session:
        row = session.get_one(AssistantVersion, (address, number))
    return StoredAssistant(config=config, version=number, created_at=row.created_at)


def _all(engine: Engine, caller: Caller) -> list[StoredAssistant]:
    query = (
        select(AssistantVersion, AssistantEnvironment.environment)
        .join(
            AssistantEnvironment,
            (col(AssistantEnvironment.address) == col(AssistantVersion.address))
            & (col(AssistantEnvironment.version) == col(AssistantVersion.version)),
        )
        .where(AssistantVersion.workspace == caller.workspace)
        .order_by(col(AssistantVersion.address), col(AssistantEnvironment.environment))
    )
    with Session(engine) as session:
        return [
            StoredAssistant(
                config=AssistantConfig.model_validate({**row.config, "environment": environment}),
                version=row.version,
                created_at=row.created_at,
            )
            for row, environment in session.exec(query)
        ]
