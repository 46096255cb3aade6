"""Many streams that one client holds open at once: bare sockets, so that the client is the smaller part of it."""

from __future__ import annotations

import asyncio
import json
import resource
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

# A source address has some 28,000 ports, of which those just closed rest for a minute.
_PER_SOURCE_ADDRESS = 5000
_CONNECTING_AT_ONCE = 128
_READ_AT_ONCE_BYTES = 64 * 1024


class HeldStream(asyncio.Protocol):
    """One request whose answer is read as it comes; `answered` is done with its first bytes or its end."""

    def __init__(self, request: bytes) -> None:
        """Send this once connected."""
        self._request = request
        self.received = bytearray()
        self.answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - a TCP connection's
        self.transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Keep the first of what comes."""
        if len(self.received) < _READ_AT_ONCE_BYTES:
            self.received += data
        self._is_answered()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the protocol's
        """Note that the other end has closed."""
        self._is_answered()

    def _is_answered(self) -> None:
        if not self.answered.done():
            self.answered.set_result(None)


def allow_files(count: int) -> None:
    """Let this process open so many files and some more; OSError where the system does not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 1000
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(wanted, hard)))


def chat_request(key: str, body: Mapping[str, Any], *, path: str = "/v1/chat/completions") -> bytes:
    """Return the bytes of a `POST` with this JSON body."""
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


@asynccontextmanager
async def held(address: tuple[str, int], requests: Sequence[bytes]) -> AsyncIterator[list[HeldStream]]:
    """Send each request on a connection of its own, and hold all of them; all clients leave at once at the end."""
    loop = asyncio.get_running_loop()
    connecting = asyncio.Semaphore(_CONNECTING_AT_ONCE)
    streams: list[HeldStream] = []

    async def connect(number: int, request: bytes) -> None:
        source = (f"127.0.0.{2 + number // _PER_SOURCE_ADDRESS}", 0)
        async with connecting:
            _, stream = await loop.create_connection(lambda: HeldStream(request), *address, local_addr=source)
            streams.append(stream)

    try:
        await asyncio.gather(*(connect(number, request) for number, request in enumerate(requests)))
        yield streams
    finally:
        for stream in streams:
            stream.transport.abort()
