"""Keys to the gateway, in SQL: made, found by what a caller sends, listed, revoked. Only a hash is kept.

A key is `aq_<id>_<secret>`: the id finds its row, the secret is 256 bits of chance, so that one round of
SHA-256 is as good as any slow hash.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from sqlalchemy import Engine
from sqlmodel import Session

from schemas.assistant import checked_workspace
from schemas.tables import ApiKey

_KEY = re.compile(r"aq_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")


class Scope(StrEnum):
    """What a key may do; one of these for each route."""

    RUN = "run"
    READ = "read"
    ASSISTANTS = "assistants"
    WEBHOOKS = "webhooks"


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that was just made; `text` is what its owner sends, and is shown this once."""

    text: str
    key: ApiKey


class ApiKeys:
    """The keys of one database; its tables must exist."""

    def __init__(self, engine: Engine) -> None:
        """Use this engine."""
        self._engine = engine

    def create(
        self,
        workspace: str,
        *,
        name: str = "",
        scopes: Sequence[Scope] = tuple(Scope),
        assistants: Sequence[str] | None = None,
        rpm: int | None = None,
        expires_at: datetime | None = None,
    ) -> NewKey:
        """Make a key of the workspace."""
        key_id, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
        key = ApiKey(
            id=key_id,
            workspace=checked_workspace(workspace),
            name=name,
            hint=f"aq_{key_id}_…{secret[-4:]}",
            secret_hash=_hash(secret),
            scopes=[scope.value for scope in scopes],
            assistants=None if assistants is None else list(assistants),
            rpm=rpm,
            created_at=datetime.now(UTC),
            expires_at=expires_at,
        )
        with Session(self._engine, expire_on_commit=False) as session:
            session.add(key)
            session.commit()
        return NewKey(text=f"aq_{key_id}_{secret}", key=key)

    def find(self, text: str) -> ApiKey | None:
        """Return the key that this is, None for one that is none, was revoked or has expired."""
        match = _KEY.fullmatch(text)
        if match is None:
            return None
        with Session(self._engine) as session:
            key = session.get(ApiKey, match[1])
        if key is None or not hmac.compare_digest(key.secret_hash, _hash(match[2])):
            return None
        over = key.expires_at is not None and key.expires_at <= datetime.now(UTC)
        return None if over or key.revoked_at is not None else key


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
