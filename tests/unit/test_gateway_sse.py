"""What the gateway writes to a stream while nothing comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from producer.gateway.http import sse

pytestmark = pytest.mark.anyio


async def test_comments_fill_a_pause_and_the_events_come_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "_PING_EVERY_S", 0.001)
    goes_on = asyncio.Event()

    async def events() -> AsyncIterator[str]:
        yield sse.event("first")
        await goes_on.wait()
        yield sse.event("second")

    said = aiter((await sse.event_stream(events())).body_iterator)
    assert await anext(said) == sse.event("first")
    for _ in range(3):
        assert await anext(said) == ": ping\n\n"
    goes_on.set()
    assert [each async for each in said if each != ": ping\n\n"] == [sse.event("second")]
