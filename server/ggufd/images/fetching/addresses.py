"""Addresses that images may be fetched from: public ones, after every disguise is taken off."""

from __future__ import annotations

import ipaddress

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64 = ipaddress.ip_network("64:ff9b::/96")

_METADATA = (
    ipaddress.ip_network("192.0.0.0/24"),  # Oracle's is in it; older releases of Python take it for global
    ipaddress.ip_network("168.63.129.16/32"),  # Azure's
)
"""Networks of a cloud's own that look public."""


def is_public(text: str) -> bool:
    """Whether an address belongs to the public internet, so that fetching from it reaches nothing within."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if address in _NAT64:
        return _is_global(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return all(_is_global(one) for one in (address, *_embedded(address)))


def _is_global(address: Address) -> bool:
    return (
        address.is_global
        and not address.is_multicast
        and not address.is_reserved
        and not address.is_unspecified
        and not any(address in network for network in _METADATA)
    )


def _embedded(address: Address) -> list[Address]:
    """IPv4 addresses within an IPv6 one, which a router may unwrap."""
    if isinstance(address, ipaddress.IPv4Address):
        return []
    found = (address.ipv4_mapped, address.sixtofour, *(address.teredo or ()))
    return [one for one in found if one is not None]
