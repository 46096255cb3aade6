"""Stored assistants: immutable numbered versions, and environments that point at them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Engine, func
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, select

from schemas.assistant import AssistantConfig
from schemas.errors import InputError
from schemas.tables import AssistantEnvironment, AssistantVersion


@dataclass(frozen=True, slots=True)
class Applied:
    """What applying a configuration came to."""

    address: str
    environment: str
    version: int
    new_version: bool
    moved_from: int | None

    @property
    def changed(self) -> bool:
        """Return whether anything is different from before."""
        return self.new_version or self.moved_from != self.version


@dataclass(frozen=True, slots=True)
class Listed:
    """One assistant with its newest version and where its environments point."""

    address: str
    newest: int
    environments: dict[str, int]


def fingerprint(config: AssistantConfig) -> str:
    """Return a digest that two configurations share exactly when they would run alike.

    The environment is a pointer, not a part of the version. Defaults are left out, so that
    a parameter which a later release adds makes no new version.
    """
    content = config.model_dump(mode="json", by_alias=True, exclude={"environment"}, exclude_defaults=True)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class Assistants:
    """The stored assistants of one database; its tables must exist."""

    def __init__(self, engine: Engine) -> None:
        """Use this engine."""
        self._engine = engine

    def apply(self, config: AssistantConfig) -> Applied:
        """Store the configuration, unless an equal version exists, and point its environment there.

        Applying the same again changes nothing.
        """
        try:
            return self._apply(config)
        except IntegrityError:
            # Somebody applied at the same time and took the number; the second look sees it.
            return self._apply(config)

    def config(
        self, address: str, *, environment: str = "production", version: int | None = None
    ) -> tuple[AssistantConfig, int]:
        """Return a stored version and its number; InputError if there is none."""
        with Session(self._engine) as session:
            if version is None:
                pointer = session.get(AssistantEnvironment, (address, environment))
                if pointer is None:
                    raise InputError(
                        f"assistant {address} has no environment '{environment}'",
                        mend="store it with `assistq assistants apply FILE`, or name a YAML file",
                    )
                version = pointer.version
            row = session.get(AssistantVersion, (address, version))
        if row is None:
            raise InputError(
                f"assistant {address} has no version {version}", mend="`assistq assistants list` shows them"
            )
        return AssistantConfig.model_validate({**row.config, "environment": environment}), version

    def deployments(self, workspace: str) -> list[AssistantEnvironment]:
        """Return where the environments of the workspace's assistants point, by address and environment."""
        address, environment = col(AssistantEnvironment.address), col(AssistantEnvironment.environment)
        of_workspace = address.startswith(f"{workspace}/", autoescape=True)
        with Session(self._engine) as session:
            return list(session.exec(select(AssistantEnvironment).where(of_workspace).order_by(address, environment)))

    def deploy(self, address: str, *, environment: str, version: int) -> int | None:
        """Point the environment at a version that exists; return the version it pointed at before."""
        with Session(self._engine) as session:
            if session.get(AssistantVersion, (address, version)) is None:
                raise InputError(
                    f"assistant {address} has no version {version}", mend="`assistq assistants list` shows them"
                )
            now = datetime.now(UTC)
            pointer = session.get(AssistantEnvironment, (address, environment))
            before = pointer.version if pointer else None
            if pointer is None:
                pointer = AssistantEnvironment(
                    address=address, environment=environment, version=version, updated_at=now
                )
            elif before != version:
                pointer.version, pointer.updated_at = version, now
            session.add(pointer)
            session.commit()
        return before

    def all(self) -> list[Listed]:
        """Return every assistant, by address."""
        newest = select(AssistantVersion.address, func.max(AssistantVersion.version)).group_by(
            col(AssistantVersion.address)
        )
        with Session(self._engine) as session:
            versions = dict(session.exec(newest.order_by(col(AssistantVersion.address))).all())
            pointers = session.exec(select(AssistantEnvironment)).all()
        return [
            Listed(
                address=address,
                newest=version,
                environments={row.environment: row.version for row in pointers if row.address == address},
            )
            for address, version in versions.items()
        ]

    def _apply(self, config: AssistantConfig) -> Applied:
        now = datetime.now(UTC)
        digest = fingerprint(config)
        with Session(self._engine) as session:
            rows = session.exec(select(AssistantVersion).where(AssistantVersion.address == config.assistant)).all()
            equal = [row.version for row in rows if row.fingerprint == digest]
            version = max(equal) if equal else 1 + max((row.version for row in rows), default=0)
            if not equal:
                session.add(
                    AssistantVersion(
                        address=config.assistant,
                        version=version,
                        workspace=config.workspace,
                        fingerprint=digest,
                        config=config.model_dump(mode="json", by_alias=True, exclude={"environment"}),
                        created_at=now,
                    )
                )
            pointer = session.get(AssistantEnvironment, (config.assistant, config.environment))
            moved_from = pointer.version if pointer else None
            if pointer is None:
                session.add(
                    AssistantEnvironment(
                        address=config.assistant, environment=config.environment, version=version, updated_at=now
                    )
                )
            elif pointer.version != version:
                pointer.version, pointer.updated_at = version, now
                session.add(pointer)
            session.commit()
        return Applied(
            address=config.assistant,
            environment=config.environment,
            version=version,
            new_version=not equal,
            moved_from=moved_from,
        )
