"""The end of what a child process writes to stderr, to be told if it fails."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from typing import TextIO

_KEPT_BYTES = 2048
_PATIENCE_S = 1.0


class LastWords(asyncio.Protocol):
    """Reads all of a pipe, so that the child never has to wait, and keeps the last of it."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._data = b""
        self._ended = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        """Keep the end."""
        self._data = (self._data + data)[-_KEPT_BYTES:]

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Know that nothing more comes."""
        self._ended.set()

    async def line(self) -> str:
        """Return the last line that is not blank, or nothing, once the child has gone."""
        with contextlib.suppress(TimeoutError):  # a grandchild may live on
            await asyncio.wait_for(self._ended.wait(), _PATIENCE_S)
        lines = [line.strip() for line in self._data.decode(errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else ""


@contextlib.asynccontextmanager
async def listening() -> AsyncIterator[tuple[LastWords, TextIO]]:
    """Give what reads, and the file for the child, to be closed as soon as the child has it."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as file:
        transport, words = await asyncio.get_running_loop().connect_read_pipe(LastWords, os.fdopen(reading, "rb"))
        try:
            yield words, file
        finally:
            transport.close()
