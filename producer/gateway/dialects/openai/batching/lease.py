"""The right to work on a batch, which one gateway at a time has; and the end of it."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Engine, update
from sqlmodel import Session, col

from producer.gateway.dialects.openai.batching.store import BatchStatus
from schemas.tables import OpenAIBatch

# After the end of the gateway that had it, another one waits for so long.
LEASE = timedelta(seconds=15)
_RENEW_EVERY_S = 3.0


class LeaseLostError(Exception):
    """Another gateway works on the batch now."""


class StoppingError(Exception):
    """The gateway is told to end; another one, or the next, goes on."""


class CalledOffError(Exception):
    """Somebody cancels the batch, whose rows are being taken in."""


class Lease:
    """One claim of one batch. Everything that is written under it is written only while it is held."""

    def __init__(self, engine: Engine, batch: OpenAIBatch, stopping: threading.Event) -> None:
        """Hold what was claimed just now."""
        self._engine = engine
        self._stopping = stopping
        self.batch_id = batch.id
        self.claim = batch.claims
        self._renew_at_s = time.monotonic() + _RENEW_EVERY_S

    def keep(self, *, while_wanted: bool = False) -> None:
        """Renew the lease where it is time to; for long work, called often.

        Raises LeaseLostError, StoppingError, and with `while_wanted` CalledOffError.
        """
        if self._stopping.is_set():
            raise StoppingError
        if time.monotonic() < self._renew_at_s:
            return
        with Session(self._engine) as session:
            status = self.write(session)
            session.commit()
        if while_wanted and status == BatchStatus.CANCELLING:
            raise CalledOffError

    def write(self, session: Session, **values: Any) -> str:
        """Write the values into the batch's row and renew the lease, in the session's transaction; return its status.

        Raises LeaseLostError, and the transaction must not be committed, if the lease is another one's.
        """
        statement = (
            update(OpenAIBatch)
            .where(*self._is_held())
            .values(**{"claimed_until": datetime.now(UTC) + LEASE, **values})
            .returning(col(OpenAIBatch.status))
        )
        status = session.execute(statement).scalar_one_or_none()
        if status is None:
            raise LeaseLostError
        self._renew_at_s = time.monotonic() + _RENEW_EVERY_S
        return str(status)

    def give_back(self, *, after: timedelta = timedelta()) -> None:
        """Let anybody claim the batch, after this time; nothing happens if it is another one's already."""
        with self._engine.begin() as connection:
            connection.execute(
                update(OpenAIBatch).where(*self._is_held()).values(claimed_until=datetime.now(UTC) + after)
            )

    def _is_held(self) -> tuple[Any, ...]:
        return (
            col(OpenAIBatch.id) == self.batch_id,
            col(OpenAIBatch.claims) == self.claim,
            col(OpenAIBatch.ended_at).is_(None),
        )
