"""Resolves a host name once and says which addresses may be connected to."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from ipaddress import ip_address

from worker.net.addresses import is_public

Resolve = Callable[[str], Awaitable[Sequence[str]]]
"""Returns a host's IP addresses, the preferred one first; raises OSError."""


class AddressRefused(Exception):  # noqa: N818 - the name says what happened
    """A host that may not be connected to; the text does not tell what its name resolves to."""


class AddressGuard:
    """Lets connections go to the public internet only, or anywhere at all."""

    def __init__(self, *, allow_private: bool, resolve: Resolve | None = None) -> None:
        """Take the rule; `resolve` is the system's resolver if none is given."""
        self._allow_private = allow_private
        self._resolve = resolve or resolve_by_system

    async def addresses(self, host: str, port: int) -> tuple[str, ...]:
        """Return the checked addresses of a host, to be connected to as they are.

        Whoever resolves the name again may get other addresses. One private address among
        public ones refuses them all. Raises AddressRefused, or OSError for an unknown name.
        """
        if not 0 < port <= 65_535:
            raise AddressRefused(f"port {port} does not exist: ports are 1 to 65535")
        resolved = tuple(await self._resolve(host))
        if not resolved:
            raise OSError(f"the host '{host}' has no address")
        if not self._allow_private and not all(is_public(ip_address(address)) for address in resolved):
            raise AddressRefused(
                f"the host '{host}' is not on the public internet, and this workspace does not allow private addresses"
            )
        return resolved


async def resolve_by_system(host: str) -> Sequence[str]:
    """Return a host's addresses as the machine is set up to find them."""
    return await resolver_on(None)(host)


def resolver_on(threads: Executor | None) -> Resolve:
    """Return the system's resolver, on these threads, or on those of the event loop: a dead name holds one for long."""

    async def resolve(host: str) -> Sequence[str]:
        look_up = partial(socket.getaddrinfo, host, None, type=socket.SOCK_STREAM)
        found = await asyncio.get_running_loop().run_in_executor(threads, look_up)
        return [str(sockaddr[0]) for *_, sockaddr in found]

    return resolve
