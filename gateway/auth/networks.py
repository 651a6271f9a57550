"""Where callers come from: addresses, and the networks a key may be used from."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


def networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """Networks such as `10.0.0.0/8` or single addresses; empty texts are passed over. `ValueError` names the wrong one.

    >>> networks("10.1.2.3/8, ::1".split(","))
    (IPv4Network('10.0.0.0/8'), IPv6Network('::1/128'))
    """
    found = []
    for text in filter(None, map(str.strip, texts)):
        try:
            found.append(ip_network(text, strict=False))
        except ValueError:
            raise ValueError(f"{text!r} is not a network; expected one such as 10.0.0.0/8 or 2001:db8::/32") from None
    return tuple(found)


def address(text: str) -> Address | None:
    """The address in a text; None for anything else. IPv4 inside IPv6 is IPv4."""
    try:
        found = ip_address(text)
    except ValueError:
        return None
    if isinstance(found, IPv6Address) and found.ipv4_mapped is not None:
        return found.ipv4_mapped
    return found


def within(source: str | None, allowed: tuple[str, ...]) -> bool:
    """Whether a call from `source` may use a key that is for these networks; an unknown source may not."""
    if (found := address(source or "")) is None:
        return False
    return any(found in network for network in _parsed(allowed))


# Pure, and far too slow for every call.
@functools.lru_cache(maxsize=1024)
def _parsed(texts: tuple[str, ...]) -> tuple[Network, ...]:
    return networks(texts)
