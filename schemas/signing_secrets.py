"""The secrets that a workspace's webhooks are signed with: made when first needed, two valid while they are rotated."""

from __future__ import annotations

import base64
import secrets
from datetime import UTC, datetime, timedelta

from sqlalchemy import delete, insert, literal, update
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, select

from schemas.tables import RetiredWebhookSecret, UtcDateTime, WebhookSecret

SECRET_PREFIX = "whsec_"  # noqa: S105 - no secret, what one begins with
SECRET_BYTES = 32
# How long the secret before a rotation signs too, unless it is said otherwise.
OVERLAP_HOURS = 24.0


def signing_secret(session: Session, workspace: str) -> str:
    """Return the workspace's secret, `whsec_…`, adding a random one in the session's transaction if missing.

    Of two that make one at the same time, the primary key lets one win; both return it.
    """
    statement = select(WebhookSecret.secret).where(col(WebhookSecret.workspace) == workspace)
    secret = session.exec(statement).one_or_none()
    if secret is not None:
        return secret
    made = _made()
    try:
        # A savepoint: losing the race must not undo what the caller's transaction did before.
        with session.begin_nested():
            row = {"workspace": workspace, "secret": made, "created_at": datetime.now(UTC)}
            session.connection().execute(insert(WebhookSecret).values(row))
    except IntegrityError:
        return session.exec(statement).one()
    return made


def signing_secrets(session: Session, workspace: str, *, now: datetime) -> list[str]:
    """Return all secrets that are valid now, the workspace's own first, then those before its rotations."""
    # The own one first: a rotation between the two looks would else leave out what it retires.
    secret = signing_secret(session, workspace)
    retired = (
        select(RetiredWebhookSecret.secret)
        .where(col(RetiredWebhookSecret.workspace) == workspace, col(RetiredWebhookSecret.expires_at) > now)
        .order_by(col(RetiredWebhookSecret.expires_at).desc())
    )
    return [secret, *(each for each in session.exec(retired) if each != secret)]


def rotate(session: Session, workspace: str, *, now: datetime, overlap: timedelta) -> str:
    """Give the workspace a new secret and return it; the one before signs too until `overlap` has passed.

    Commits. Of two rotations at once the second retires what the first made, so both of their secrets are valid.
    """
    while True:
        try:
            secret = _rotate_once(session, workspace, now=now, overlap=overlap)
            session.commit()
        except IntegrityError:
            # The other one retired the same secret first: the next look finds its new one.
            session.rollback()
        else:
            return secret


def _rotate_once(session: Session, workspace: str, *, now: datetime, overlap: timedelta) -> str:
    gone = col(RetiredWebhookSecret.workspace) == workspace, col(RetiredWebhookSecret.expires_at) <= now
    connection = session.connection()
    # Writes only, so that SQLite gives the lock at the first of them.
    connection.execute(delete(RetiredWebhookSecret).where(*gone))
    columns = col(WebhookSecret.workspace), col(WebhookSecret.secret), col(WebhookSecret.created_at)
    until = literal(now + overlap, UtcDateTime())
    copied = insert(RetiredWebhookSecret).from_select(
        ["workspace", "secret", "created_at", "expires_at"],
        select(*columns, until).where(col(WebhookSecret.workspace) == workspace),
    )
    connection.execute(copied)
    made = _made()
    changed = connection.execute(
        update(WebhookSecret).where(col(WebhookSecret.workspace) == workspace).values(secret=made, created_at=now)
    )
    # A workspace that had none needs no overlap.
    return made if changed.rowcount else signing_secret(session, workspace)


def _made() -> str:
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode("ascii")
