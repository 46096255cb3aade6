"""One POST to an address that a user chose: what came of it, and never an exception for a receiver's fault."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from http.cookiejar import CookieJar, DefaultCookiePolicy

import httpx2

from worker.net.guard import AddressGuard, Resolve, resolver_on
from worker.net.guarded_transport import ConnectionRefusedByGuard, GuardedTransport
from worker.webhooks.decide import Answer, is_success

TIMEOUT_S = 20.0
EXCERPT_BYTES = 1024
# What a receiver, or an address that is none, can do to a POST. InvalidURL is no HTTPError.
RECEIVER_FAULTS = (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, OSError, UnicodeError)


class WebhookPost:
    """Sends to the public internet only, or for a workspace that is allowed so anywhere."""

    def __init__(
        self,
        *,
        allows_private: Callable[[str], bool],
        max_connections: int,
        timeout_s: float = TIMEOUT_S,
        resolve: Resolve | None = None,
    ) -> None:
        """Take the rules; `max_connections` must be no fewer than the POSTs that run at once.

        `timeout_s` is for a whole POST. `resolve` is the system's resolver if none is given.
        """
        self._allows_private = allows_private
        self._timeout_s = timeout_s
        # Names whose servers are dead hold a thread for long: threads of their own, not those of databases.
        self._threads = ThreadPoolExecutor(max_connections, thread_name_prefix="webhook-names")
        resolve = resolve or resolver_on(self._threads)
        self._clients = {
            allow: _client(AddressGuard(allow_private=allow, resolve=resolve), max_connections, timeout_s)
            for allow in (False, True)
        }

    async def send(self, url: str, *, workspace: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """POST once, without following a redirect."""
        fault = _fault_of_address(url)
        if fault is not None:
            return Answer(status=None, error=fault)
        client = self._clients[self._allows_private(workspace)]
        status: int | None = None
        excerpt = bytearray()
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                client.stream("POST", url, content=body, headers=headers, follow_redirects=False) as response,
            ):
                status = response.status_code
                if not is_success(status):
                    await _read_excerpt(response, excerpt)
        except (TimeoutError, *RECEIVER_FAULTS) as exc:
            # Once a status was read it is the answer, whatever became of the body.
            if status is None:
                return Answer(status=None, error=self._told(exc, url, workspace))
        if is_success(status):
            return Answer(status=status, error=None)
        return Answer(status=status, error=_one_line(f"HTTP {status}: {excerpt.decode(errors='replace')}"))

    async def aclose(self) -> None:
        """Close all connections."""
        for client in self._clients.values():
            await client.aclose()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _told(self, exc: Exception, url: str, workspace: str) -> str:
        if isinstance(exc, ConnectionRefusedByGuard):
            return _one_line(
                f"refused: the host '{httpx2.URL(url).host}' is not on the public internet; name the workspace "
                f"'{workspace}' in ASSISTQ_PRIVATE_NETWORK_WORKSPACES, for the workers, to allow it"
            )
        if isinstance(exc, (TimeoutError, httpx2.TimeoutException)):
            return f"no answer within {self._timeout_s:g} s"
        return _one_line(f"{type(exc).__name__}: {exc}")


def _client(guard: AddressGuard, max_connections: int, timeout_s: float) -> httpx2.AsyncClient:
    """Return a client that keeps no cookie, as receivers of all workspaces share it, and uses no proxy."""
    # No connection is kept: see guarded_transport.KEEP_NONE.
    limits = httpx2.Limits(max_connections=max_connections, max_keepalive_connections=0)
    return httpx2.AsyncClient(
        transport=GuardedTransport(guard, limits=limits),
        cookies=CookieJar(policy=DefaultCookiePolicy(allowed_domains=[])),
        follow_redirects=False,
        timeout=timeout_s,
        trust_env=False,
    )


def _fault_of_address(url: str) -> str | None:
    """Return what is wrong with the address; a port beyond 65535 would be an OverflowError deep in the client."""
    try:
        parsed = httpx2.URL(url)
    except (httpx2.InvalidURL, UnicodeError) as exc:
        return _one_line(f"the address is no URL: {exc}")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        return "the address must begin with http:// or https:// and name a host"
    if parsed.port is not None and not 0 < parsed.port <= 65_535:
        return f"the address has port {parsed.port}; ports are 1 to 65535"
    return None


async def _read_excerpt(response: httpx2.Response, excerpt: bytearray) -> None:
    """Fill `excerpt` with the first EXCERPT_BYTES of the body, undecoded: a body may be a bomb."""
    async for chunk in response.aiter_raw(EXCERPT_BYTES):
        excerpt += chunk[: EXCERPT_BYTES - len(excerpt)]
        if len(excerpt) >= EXCERPT_BYTES:
            return


def _one_line(text: str) -> str:
    """Return the text with each run of white space and unprintables as one space.

    NUL among them, which PostgreSQL refuses.
    """
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())
