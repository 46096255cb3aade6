"""An HTTP transport that connects to exactly the addresses that a guard has checked."""

from __future__ import annotations

import asyncio
import ssl

import httpx2

from worker.net.guard import AddressGuard, AddressRefused

# A connection is kept under its address, not its name: another name at the same address
# would get a connection whose certificate was checked for the first.
KEEP_NONE = httpx2.Limits(max_keepalive_connections=0)
_DEFAULT_PORTS = {"http": 80, "https": 443}


class ConnectionRefusedByGuard(httpx2.ConnectError):
    """The guard let nothing be sent."""


class GuardedTransport(httpx2.AsyncBaseTransport):
    """Asks the guard for each request, redirects included, and puts the checked address in the name's place.

    So no name is resolved a second time, and a name that changes its address between check
    and connection (DNS rebinding) gains nothing. The `Host` header and TLS still say the name.
    """

    def __init__(
        self,
        guard: AddressGuard,
        *,
        limits: httpx2.Limits = KEEP_NONE,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Use this guard; `limits` may keep connections only if all requests go to one host."""
        self._guard = guard
        self._inner = httpx2.AsyncHTTPTransport(verify=True if tls is None else tls, limits=limits)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send the request; tries a host's addresses in order until one takes the connection."""
        addresses = await self._checked(request)
        for address in addresses[:-1]:
            try:
                return await self._inner.handle_async_request(_to(address, request))
            except (httpx2.ConnectError, httpx2.ConnectTimeout):
                continue  # nothing was sent: the next one
        return await self._inner.handle_async_request(_to(addresses[-1], request))

    async def aclose(self) -> None:
        """Close all connections."""
        await self._inner.aclose()

    async def _checked(self, request: httpx2.Request) -> tuple[str, ...]:
        url = request.url
        if url.scheme not in _DEFAULT_PORTS or not url.host:
            raise httpx2.UnsupportedProtocol("the URL must begin with http:// or https:// and name a host")
        host = url.raw_host.decode("ascii")
        port = _DEFAULT_PORTS[url.scheme] if url.port is None else url.port
        try:
            async with asyncio.timeout(request.extensions.get("timeout", {}).get("connect")):
                return await self._guard.addresses(host, port)
        except AddressRefused as exc:
            raise ConnectionRefusedByGuard(str(exc)) from exc
        except TimeoutError as exc:
            raise httpx2.ConnectTimeout(f"the name of the host '{host}' was not resolved in time") from exc
        except (OSError, UnicodeError) as exc:
            raise httpx2.ConnectError(f"the host '{host}' is unknown") from exc


def _to(address: str, request: httpx2.Request) -> httpx2.Request:
    """Return the request with the address in its URL; it keeps its `Host` header."""
    name = request.url.raw_host.decode("ascii").rstrip(".")
    return httpx2.Request(
        request.method,
        request.url.copy_with(host=address),
        headers=request.headers,
        stream=request.stream,
        extensions={**request.extensions, "sni_hostname": name},
    )
