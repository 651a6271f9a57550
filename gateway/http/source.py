"""The address a call comes from, as far as that is known."""

from __future__ import annotations

import re
from collections.abc import Iterable

from gateway.auth.networks import Network, address

_PORT = re.compile(r"^(?:([0-9.]+)|\[([0-9A-Fa-f:.]+)\])(?::[0-9]+)?$")


def source_of(
    peer: tuple[str, int] | None, headers: Iterable[tuple[bytes, bytes]], proxies: tuple[Network, ...] = ()
) -> str | None:
    """The address behind `peer`, an address and a port; None behind a Unix socket.

    When that is a trusted proxy, it is the right-most address of X-Forwarded-For that is none: what stands to the left
    of it is whatever a client liked to send.
    """
    source: str | None = (peer[0] or None) if peer else None
    if source is None or not proxies:
        return source
    hops = b",".join(value for name, value in headers if name == b"x-forwarded-for").split(b",")
    while (found := address(source)) is not None and any(found in network for network in proxies):
        source = str(found)
        hop = _PORT.sub(r"\1\2", hops.pop().strip().decode("latin-1")) if hops else ""
        if address(hop) is None:  # a proxy that says nothing, or nonsense, is as far as we can see
            return source
        source = hop
    return source if found is None else str(found)
