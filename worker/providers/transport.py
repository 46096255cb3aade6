"""httpx's transport on aiohttp, for many calls in flight at once.

httpx's own pool looks at every connection for every request, and reads HTTP in Python: with
256 calls in flight it spends ten times the processor time of all the rest of a job.

Each of httpx's four time-outs bounds what it bounds there: `pool` the wait for a place,
`connect` all of name, TCP and TLS, `write` and `read` each pause. No request is sent twice,
but for those of idempotent methods, which aiohttp repeats if a kept connection turns out closed.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace

import aiohttp
import httpx
from aiohttp.abc import AbstractStreamWriter
from yarl import URL

# The response's extension that says when its request began to leave, by time.monotonic().
SENT_AT = "assistq_sent_at"
_CHUNK_BYTES = 64 * 1024
# As long as httpx takes them; aiohttp's own bound is 8 KB.
_HEADER_MAX_BYTES = 64 * 1024
_FORBIDDEN = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


class _WriteTimeoutError(aiohttp.ServerTimeoutError):
    pass


# The first that fits counts. What may have been sent must never become one of httpx's errors of connecting.
_ERRORS: tuple[tuple[type[Exception], type[httpx.TransportError]], ...] = (
    (aiohttp.ConnectionTimeoutError, httpx.ConnectTimeout),
    (_WriteTimeoutError, httpx.WriteTimeout),
    (aiohttp.ServerTimeoutError, httpx.ReadTimeout),
    (aiohttp.ClientConnectorError, httpx.ConnectError),
    (aiohttp.InvalidURL, httpx.UnsupportedProtocol),
    (aiohttp.NonHttpUrlClientError, httpx.UnsupportedProtocol),
    (aiohttp.ServerDisconnectedError, httpx.RemoteProtocolError),
    (aiohttp.ClientResponseError, httpx.RemoteProtocolError),
    (aiohttp.ClientPayloadError, httpx.RemoteProtocolError),
    (aiohttp.ClientError, httpx.ReadError),
    (TimeoutError, httpx.ReadTimeout),
    (OSError, httpx.ReadError),
)


class AiohttpTransport(httpx.AsyncBaseTransport):
    """Sends requests whose body is bytes; redirects and content encodings are httpx's to follow."""

    def __init__(self, *, connections: int, keepalive_expiry_s: float) -> None:
        """Open up to `connections` at once; the event loop is that of the first request."""
        # Ours, for aiohttp bounds the wait for a place and the making of a connection by one time-out.
        self._places = asyncio.Semaphore(connections)
        self._keepalive_expiry_s = keepalive_expiry_s
        self._session: aiohttp.ClientSession | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request; raises an httpx.TransportError."""
        if self._session is None:
            self._session = self._open(httpx.create_ssl_context())
        # Checked here, for what aiohttp would raise then tells nothing of whether it was sent.
        if any(_FORBIDDEN.search(value) for _, value in request.headers.raw):
            raise httpx.LocalProtocolError("a header holds a control character", request=request)
        timeouts = request.extensions.get("timeout", {})
        await self._take_place(request, timeouts.get("pool"))
        sent = _Sent()
        try:
            with _as_httpx_errors(request):
                response = await self._session.request(
                    request.method,
                    _url(request),
                    data=_content(request, timeouts.get("write")),
                    headers=request.headers.multi_items(),
                    allow_redirects=False,
                    timeout=aiohttp.ClientTimeout(connect=timeouts.get("connect"), sock_read=timeouts.get("read")),
                    trace_request_ctx=sent,
                )
        except BaseException:
            self._places.release()
            raise
        return httpx.Response(
            response.status,
            headers=response.raw_headers,
            stream=_Body(response, request, self._places),
            extensions={
                "http_version": b"HTTP/1.1",
                "reason_phrase": (response.reason or "").encode(),
                SENT_AT: sent.at_s,
            },
        )

    async def aclose(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def _take_place(self, request: httpx.Request, timeout_s: float | None) -> None:
        if not self._places.locked():
            timeout_s = None
        try:
            async with asyncio.timeout(timeout_s):
                await self._places.acquire()
        except TimeoutError as exc:
            raise httpx.PoolTimeout("all connections are in use", request=request) from exc

    def _open(self, tls: ssl.SSLContext) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=self._keepalive_expiry_s, ssl=tls),
            cookie_jar=aiohttp.DummyCookieJar(),
            # httpx has set all of them.
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
            auto_decompress=False,
            trace_configs=[_trace()],
            max_line_size=_HEADER_MAX_BYTES,
            max_field_size=_HEADER_MAX_BYTES,
        )


@dataclass(slots=True)
class _Sent:
    at_s: float | None = None


async def _note_sent(_session: object, context: SimpleNamespace, _params: object) -> None:
    context.trace_request_ctx.at_s = time.monotonic()


def _trace() -> aiohttp.TraceConfig:
    trace = aiohttp.TraceConfig()
    trace.on_request_headers_sent.append(_note_sent)
    return trace


class _LargeContent(aiohttp.Payload):
    """A body that the server may be slow to read."""

    def __init__(self, content: bytes, *, write_timeout_s: float | None) -> None:
        super().__init__(content)
        self._size = len(content)
        self._write_timeout_s = write_timeout_s

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return str(self._value, encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        content = memoryview(self._value)
        for begin in range(0, len(content), _CHUNK_BYTES):
            try:
                async with asyncio.timeout(self._write_timeout_s):
                    await writer.write(content[begin : begin + _CHUNK_BYTES])
            except TimeoutError as exc:
                raise _WriteTimeoutError("the server does not read the request") from exc


class _Body(httpx.AsyncByteStream):
    def __init__(self, response: aiohttp.ClientResponse, request: httpx.Request, places: asyncio.Semaphore) -> None:
        self._response = response
        self._request = request
        self._places: asyncio.Semaphore | None = places

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _as_httpx_errors(self._request):
            async for chunk in self._response.content.iter_chunked(_CHUNK_BYTES):
                yield chunk

    async def aclose(self) -> None:
        # One that was read to its end is back in the pool already; any other can serve no more.
        self._response.close()
        if self._places is not None:
            self._places.release()
            self._places = None


def _url(request: httpx.Request) -> URL:
    # httpx has made a header of what stands before the host, and has escaped all that needs it.
    url = request.url.copy_with(username=None, password=None) if request.url.userinfo else request.url
    return URL(str(url), encoded=True)


def _content(request: httpx.Request, write_timeout_s: float | None) -> bytes | _LargeContent | None:
    # A small one is written at once, whatever the server reads.
    if len(request.content) > _CHUNK_BYTES:
        return _LargeContent(request.content, write_timeout_s=write_timeout_s)
    return request.content or None


@contextmanager
def _as_httpx_errors(request: httpx.Request) -> Iterator[None]:
    try:
        yield
    except (aiohttp.ClientError, OSError) as exc:
        kind = next(ours for theirs, ours in _ERRORS if isinstance(exc, theirs))
        raise kind(str(exc) or type(exc).__name__, request=request) from exc
