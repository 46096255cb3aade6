"""Which IP addresses are on the public internet. Pure."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_network

# IANA's special-purpose registries, written out: what `is_global` says depends on the
# patch release of Python, and it takes multicast, 6to4 and NAT64 for global.
_NOT_PUBLIC_V4 = tuple(
    ip_network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT
        "127.0.0.0/8",
        "168.63.129.16/32",  # Azure's own services for a virtual machine, on a public address
        "169.254.0.0/16",  # link-local; 169.254.169.254 tells a cloud machine its credentials
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
)
# Everything outside is something else: loopback, link-local, unique-local, multicast,
# IPv4-mapped, NAT64 (64:ff9b::/96), …
_PUBLIC_V6 = ip_network("2000::/3")
_NOT_PUBLIC_V6 = tuple(
    ip_network(network)
    for network in (
        "2001::/23",  # Teredo, ORCHID, benchmarking, …
        "2001:db8::/32",
        "2002::/16",  # 6to4: an IPv4 address inside
        "3fff::/20",
    )
)


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Return whether the address is an ordinary one of the public internet."""
    if not address.is_global:
        return False
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC_V4)
    return address in _PUBLIC_V6 and not any(address in network for network in _NOT_PUBLIC_V6)
