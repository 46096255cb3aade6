"""httpx's transport on aiohttp, for many calls in flight at once.

httpx's own pool looks at every connection for every request, and reads HTTP in Python: with
256 calls in flight it spends ten times the processor time of all the rest of a job.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import aiohttp
import httpx

_CHUNK_BYTES = 64 * 1024
# As long as httpx takes them; aiohttp's own bound is 8 KB.
_HEADER_MAX_BYTES = 64 * 1024
_FORBIDDEN = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
# The first that fits counts. What may have been sent must never become one of httpx's errors of connecting.
_ERRORS: tuple[tuple[type[Exception], type[httpx.TransportError]], ...] = (
    (aiohttp.ConnectionTimeoutError, httpx.ConnectTimeout),
    (aiohttp.ServerTimeoutError, httpx.ReadTimeout),
    (aiohttp.ClientConnectorError, httpx.ConnectError),
    (aiohttp.InvalidURL, httpx.UnsupportedProtocol),
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
        self._connections = connections
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
        with _as_httpx_errors(request):
            response = await self._session.request(
                request.method,
                # httpx has made a header of what stands before the host.
                str(request.url.copy_with(username=None, password=None) if request.url.userinfo else request.url),
                data=request.content or None,
                headers=request.headers.multi_items(),
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(
                    connect=timeouts.get("pool"),
                    sock_connect=timeouts.get("connect"),
                    sock_read=timeouts.get("read"),
                ),
            )
        return httpx.Response(
            response.status,
            headers=response.raw_headers,
            stream=_Body(response, request),
            extensions={"http_version": b"HTTP/1.1", "reason_phrase": (response.reason or "").encode()},
        )

    async def aclose(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    def _open(self, tls: ssl.SSLContext) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=self._connections, keepalive_timeout=self._keepalive_expiry_s, ssl=tls
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            # httpx has set all of them.
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
            auto_decompress=False,
            max_line_size=_HEADER_MAX_BYTES,
            max_field_size=_HEADER_MAX_BYTES,
        )


class _Body(httpx.AsyncByteStream):
    def __init__(self, response: aiohttp.ClientResponse, request: httpx.Request) -> None:
        self._response = response
        self._request = request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _as_httpx_errors(self._request):
            async for chunk in self._response.content.iter_chunked(_CHUNK_BYTES):
                yield chunk

    async def aclose(self) -> None:
        # One that was read to its end is back in the pool already; any other can serve no more.
        self._response.close()


@contextmanager
def _as_httpx_errors(request: httpx.Request) -> Iterator[None]:
    try:
        yield
    except (aiohttp.ClientError, OSError) as exc:
        kind = next(ours for theirs, ours in _ERRORS if isinstance(exc, theirs))
        raise kind(str(exc) or type(exc).__name__, request=request) from exc
