"""Which assistants of other services a caller may bring: those alone that this assistant has had from a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Engine
from sqlmodel import Session, select

from producer.gateway.problem import Kind, Problem
from schemas.assistant import AssistantConfig
from schemas.tables import AssistantVersion


def refuse_hosted(engine: Engine, config: AssistantConfig) -> None:
    """Raise Problem 403 for an assistant that a service hosts, unless a stored version of its address is the same one.

    One key of the operator's at each service serves all workspaces. Whoever names an assistant there reads and
    pays with it, another tenant's too; so that is for assistant files.
    """
    if config.provider == "openai" or _hosted(config.model_dump()) in _known(engine, config.assistant):
        return
    raise Problem(
        Kind.FORBIDDEN,
        f"provider {config.provider}: over HTTP no assistant of another service may be named; put it into an assistant "
        "file (`assistq assistants apply`), after which all else of it can be changed here",
        code="provider_not_allowed",
        param="provider",
    )


def _known(engine: Engine, address: str) -> set[tuple[str, str | None]]:
    with Session(engine) as session:
        versions = session.exec(select(AssistantVersion.config).where(AssistantVersion.address == address))
        return {_hosted(version) for version in versions}


def _hosted(config: Mapping[str, Any]) -> tuple[str, str | None]:
    return config.get("provider") or "openai", config.get("provider_assistant")
