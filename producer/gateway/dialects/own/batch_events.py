"""What becomes of a batch, as server-sent events: `counts` when they change, and `end`, each with the batch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from producer.gateway.access import Caller
from producer.gateway.dialects.own.batch_records import BatchRecords
from producer.gateway.dialects.own.batch_view import BatchView, view_of_batch
from producer.gateway.failures import told_of
from producer.gateway.http import sse
from producer.gateway.parts import Parts
from schemas import names

# An end is published, a change of the counts is not.
_LOOK_AGAIN_S = 1.0


async def batch_events(parts: Parts, batch_id: str, caller: Caller) -> AsyncIterator[str]:
    """Yield the events up to the batch's end; Problem 404 before the first for an unknown batch.

    Each says all that is to be known, so who comes back needs no id of the last.
    """
    shown: BatchView | None = None
    records = BatchRecords(parts)
    async with parts.switchboard.listening(names.batch(batch_id)) as news:
        while True:
            news.clear()
            try:
                batch = view_of_batch(await parts.in_thread(records.find, batch_id, caller))
            except Exception as exc:
                if shown is None:
                    raise
                yield sse.event({"message": told_of(exc).message}, name="error")
                return
            if batch.ended:
                yield sse.event(batch.model_dump(mode="json"), name="end")
                return
            if batch != shown:
                yield sse.event(batch.model_dump(mode="json"), name="counts")
            shown = batch
            try:
                async with asyncio.timeout(_LOOK_AGAIN_S):
                    await news.wait()
            except TimeoutError:
                continue
