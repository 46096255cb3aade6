"""Keys to the gateway, in SQL: made, found by what a caller sends, listed, shared, revoked. Only a hash is kept.

A key is `aq_<id>_<secret>`: the id finds its row and is no secret; the secret is 256 bits of chance, so that
one round of SHA-256 is as good as any slow hash.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import Engine, text
from sqlmodel import Session, col, select

from schemas.assistant import Address, checked_workspace, workspace_of
from schemas.errors import InputError
from schemas.tables import ApiKey

_KEY = re.compile(r"aq_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")
# What stands for a key where a person names one: its id, its hint, or all of it.
_NAMED = re.compile(r"(?:aq_)?([0-9a-f]{16})(?:_.*)?")
_ADDRESS: TypeAdapter[str] = TypeAdapter(Address)
# What is compared where there is no such key, so that it takes as long.
_NOBODYS_HASH = hashlib.sha256(secrets.token_bytes(32)).hexdigest()


class Scope(StrEnum):
    """What a key may do. Each route needs exactly one of these; see also Caller.may_use for which assistants.

    | scope | routes |
    | --- | --- |
    | `run` | whatever makes, feeds, stops or repeats work: calls of all dialects, jobs, batches, their cancel and retry, uploads, threads and messages that are written or deleted; the models that may be named |
    | `read` | whatever only looks: jobs, results, events, batches, threads, files and their content, assistants |
    | `assistants` | creates, changes and deploys assistants |
    | `webhooks` | webhook endpoints, their secrets, deliveries and replays |
    """  # noqa: E501 - a table row is one line

    RUN = "run"
    READ = "read"
    ASSISTANTS = "assistants"
    WEBHOOKS = "webhooks"


class KeyState(StrEnum):
    """Whether a key opens anything."""

    ACTIVE = "active"
    EXPIRED = "expired"
    REVOKED = "revoked"


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
        """Make a key of the workspace; InputError for one that could not be, such as with another's assistant."""
        workspace = checked_workspace(workspace)
        if rpm is not None and rpm < 1:
            raise InputError(f"{rpm} requests a minute are none", mend="give 1 or more, or no limit")
        key_id, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
        key = ApiKey(
            id=key_id,
            workspace=workspace,
            name=name,
            hint=f"aq_{key_id}_…{secret[-4:]}",
            secret_hash=_hash(secret),
            scopes=[scope.value for scope in scopes],
            assistants=None if assistants is None else _addresses(assistants, workspace=workspace),
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
        right = hmac.compare_digest(_NOBODYS_HASH if key is None else key.secret_hash, _hash(match[2]))
        if key is None or not right or state_of(key, now=datetime.now(UTC)) is not KeyState.ACTIVE:
            return None
        return key

    def all(self, workspace: str | None = None) -> list[ApiKey]:
        """Return the keys, of one workspace if it is named, the oldest first."""
        query = select(ApiKey).order_by(col(ApiKey.created_at), col(ApiKey.id))
        if workspace is not None:
            query = query.where(ApiKey.workspace == checked_workspace(workspace))
        with Session(self._engine) as session:
            return list(session.exec(query))

    def revoke(self, key_id: str) -> ApiKey:
        """Let the key open nothing any more; one that was revoked stays so since then. InputError if there is none."""
        with self._to_change(key_id) as key:
            key.revoked_at = key.revoked_at or datetime.now(UTC)
        return key

    def share(self, key_id: str, addresses: Sequence[str]) -> ApiKey:
        """Let the key use these assistants too; InputError for another workspace's, and for a key that may use all."""
        with self._to_change(key_id) as key:
            shared = _shared_with(key)
            key.assistants = _addresses([*shared, *addresses], workspace=key.workspace)
        return key

    def unshare(self, key_id: str, addresses: Sequence[str]) -> ApiKey:
        """Let the key use these assistants no more; InputError for one that it could not use."""
        with self._to_change(key_id) as key:
            shared = _shared_with(key)
            for address in addresses:
                if address not in shared:
                    raise InputError(f"{address} is not shared with the key", mend="`assistq keys list` shows what is")
            key.assistants = [address for address in shared if address not in addresses]
        return key

    @contextmanager
    def _to_change(self, named: str) -> Iterator[ApiKey]:
        # Whoever changes a key reads it first: nobody else may meanwhile.
        key_id = id_of(named)
        with self._engine.begin() as connection, Session(connection, expire_on_commit=False) as session:
            if connection.dialect.name == "sqlite":
                connection.execute(text("BEGIN IMMEDIATE"))
            key = session.get(ApiKey, key_id, with_for_update=True)
            if key is None:
                raise InputError(f"key {key_id} is not known", mend="`assistq keys list` shows the keys")
            yield key
            session.add(key)
            session.flush()
            session.expunge(key)


def is_key(text: str) -> bool:
    """Return whether the text has the form of a key."""
    return _KEY.fullmatch(text) is not None


def id_of(named: str) -> str:
    """Return the id in what a person names a key by, which may be all of it; InputError that does not repeat it."""
    match = _NAMED.fullmatch(named.strip())
    if match is None:
        raise InputError(
            "that is no key's id, which has 16 digits of 0-9 and a-f", mend="`assistq keys list` shows the keys"
        )
    return match[1]


def state_of(key: ApiKey, *, now: datetime) -> KeyState:
    """Return whether the key opens anything now."""
    if key.revoked_at is not None:
        return KeyState.REVOKED
    if key.expires_at is not None and key.expires_at <= now:
        return KeyState.EXPIRED
    return KeyState.ACTIVE


def _shared_with(key: ApiKey) -> list[str]:
    if key.assistants is None:
        raise InputError(
            f"key {key.id} may use all assistants of workspace {key.workspace}",
            mend="make one for some of them: `assistq keys create … --assistant ADDRESS`",
        )
    return list(key.assistants)


def _addresses(addresses: Sequence[str], *, workspace: str) -> list[str]:
    for address in addresses:
        try:
            _ADDRESS.validate_python(address)
        except ValidationError as exc:
            raise InputError(f"'{address}' is no assistant", mend="write workspace/project/assistant") from exc
        if workspace_of(address) != workspace:
            raise InputError(
                f"{address} is not of workspace {workspace}", mend="a key opens only what is of its own workspace"
            )
    return sorted(set(addresses))


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
