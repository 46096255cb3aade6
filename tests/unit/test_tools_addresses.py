"""Which addresses are public, and what a guard makes of a host's."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from ipaddress import ip_address

import pytest

from worker.net.addresses import is_public
from worker.net.guard import AddressGuard, AddressRefused


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "93.184.216.34", "172.32.0.1", "100.128.0.1", "198.20.0.1", "2606:4700:4700::1111", "2a00:1450::1"],
)
def test_an_ordinary_address_is_public(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",  # noqa: S104 - not bound to
        "0.1.2.3",
        "10.0.0.1",
        "100.64.0.1",
        "100.100.100.200",
        "127.0.0.1",
        "127.255.255.254",
        "168.63.129.16",
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.8",
        "192.0.0.192",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.1.1",
        "198.18.0.1",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",
        "239.255.255.250",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:8.8.8.8",
        "64:ff9b::7f00:1",
        "64:ff9b:1::1",
        "100::1",
        "2001::1",
        "2001:db8::1",
        "2002:7f00:1::",
        "3fff::1",
        "5f00::1",
        "fc00::1",
        "fd12:3456::1",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "ff02::1",
        "ff0e::1",
    ],
)
def test_an_address_of_any_other_kind_is_not(address: str) -> None:
    assert not is_public(ip_address(address))


def addresses(host: str, *found: str, allow_private: bool = False, port: int = 80) -> tuple[str, ...]:
    async def resolve(_host: str) -> Sequence[str]:
        return found

    guard = AddressGuard(allow_private=allow_private, resolve=resolve if found else None)
    return asyncio.run(guard.addresses(host, port))


def test_a_public_host_has_its_addresses_in_the_resolvers_order() -> None:
    assert addresses("example.test", "93.184.216.34", "8.8.8.8") == ("93.184.216.34", "8.8.8.8")


def test_one_private_address_among_public_ones_refuses_the_host() -> None:
    with pytest.raises(AddressRefused):
        addresses("example.test", "93.184.216.34", "10.0.0.7")


def test_a_refusal_does_not_tell_what_the_name_resolves_to() -> None:
    with pytest.raises(AddressRefused) as refused:
        addresses("db.internal.test", "10.0.0.7")

    assert "db.internal.test" in str(refused.value)
    assert "10.0.0.7" not in str(refused.value)


def test_a_workspace_that_allows_private_addresses_gets_them() -> None:
    assert addresses("db.internal.test", "10.0.0.7", allow_private=True) == ("10.0.0.7",)


# The system's own resolver reads these, without asking anybody.
@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "0177.0.0.1",
        "127.1",
        "0",
        "::1",
        "::ffff:7f00:1",
        "localhost",
    ],
)
def test_no_spelling_of_loopback_gets_through(host: str) -> None:
    with pytest.raises(AddressRefused):
        addresses(host)


def test_localhost_with_a_dot_is_judged_by_its_address_like_any_name() -> None:
    with pytest.raises(AddressRefused):
        addresses("localhost.", "127.0.0.1")


@pytest.mark.parametrize("port", [0, -1, 65_536, 99_999])
def test_a_port_that_does_not_exist_is_refused(port: int) -> None:
    with pytest.raises(AddressRefused, match="port"):
        addresses("example.test", "8.8.8.8", port=port)
