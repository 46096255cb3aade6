"""The webhook endpoints of a workspace that are told of every batch which is made over OpenAI's API, and how."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy import Engine, delete
from sqlmodel import Session, col, select

from schemas.assistant import checked_workspace
from schemas.database import endpoint_locked
from schemas.errors import InputError
from schemas.tables import WebhookSubscription
from schemas.webhook import Form, checked_url

# Each end of a batch writes a delivery for each of them.
MOST_OF_A_WORKSPACE = 20


class Subscriptions:
    """The subscriptions of one database; its tables must exist."""

    def __init__(self, engine: Engine) -> None:
        """Use this engine."""
        self._engine = engine

    def of(self, workspace: str | None = None) -> Sequence[WebhookSubscription]:
        """Return the workspace's subscriptions, or all, by workspace and URL."""
        query = select(WebhookSubscription).order_by(col(WebhookSubscription.workspace), col(WebhookSubscription.url))
        if workspace is not None:
            query = query.where(WebhookSubscription.workspace == workspace)
        with Session(self._engine) as session:
            return session.exec(query).all()

    def subscribe(self, workspace: str, url: str, *, form: Form = Form.OPENAI) -> WebhookSubscription:
        """Tell the endpoint of the workspace's batches from now on; again, to choose another form.

        InputError for what is no URL, and for one more than MOST_OF_A_WORKSPACE.
        """
        checked_workspace(workspace)
        made = WebhookSubscription(
            workspace=workspace, url=checked_url(url), form=form.value, created_at=datetime.now(UTC)
        )
        # The lock of no endpoint in particular: two subscribers count one after the other.
        with (
            endpoint_locked(self._engine, workspace, "") as connection,
            Session(connection, expire_on_commit=False) as session,
        ):
            known = session.get(WebhookSubscription, (workspace, url))
            if known is not None:
                known.form = form.value
                made = known
            else:
                of_workspace = select(WebhookSubscription).where(WebhookSubscription.workspace == workspace)
                if len(session.exec(of_workspace).all()) >= MOST_OF_A_WORKSPACE:
                    raise InputError(
                        f"workspace '{workspace}' has {MOST_OF_A_WORKSPACE} webhook subscriptions, as many as it may",
                        mend="remove one with `assistq webhooks unsubscribe`",
                    )
                session.add(made)
            session.flush()
        return made

    def unsubscribe(self, workspace: str, url: str) -> bool:
        """Tell the endpoint no more; return whether it was told before."""
        is_it = col(WebhookSubscription.workspace) == workspace, col(WebhookSubscription.url) == url
        with self._engine.begin() as connection:
            return connection.execute(delete(WebhookSubscription).where(*is_it)).rowcount > 0
