"""What stands in headers: keys, `Retry-After`, `X-Forwarded-For`."""

from __future__ import annotations

import math
import zlib

from fuzz.feeding import Harness, allow

from gateway.auth import networks
from gateway.auth.networks import address, within
from gateway.auth.token import ADMIN, BASE62, KEY, parse, token
from gateway.http.request import source_of
from gateway.upstream.failures import MAX_RETRY_AFTER, retry_after

PROXIES = networks(["10.0.0.0/8", "fd00::/8"])


def check_key(data: bytes) -> None:
    """Read as a key only if it is exactly one, by its form and its checksum."""
    text = data.decode("latin-1")
    for prefix in (KEY, ADMIN):
        found = allow(ValueError, parse, text, prefix)
        assert (found is not None) == _is_key(text, prefix)
        if found is not None:
            assert token(*found, prefix) == text


def _is_key(text: str, prefix: str) -> bool:
    parts = text.split("_")
    if len(parts) != 3 or parts[0] != prefix or len(parts[1]) != 12 or len(parts[2]) != 49:
        return False
    if not set(parts[1] + parts[2]) <= set(BASE62):
        return False
    number = 0
    for digit in text[-6:]:
        number = number * 62 + BASE62.index(digit)
    return number == zlib.crc32(text[:-6].encode())


def check_retry_after(data: bytes) -> None:
    """Seconds between nothing and two minutes, or none; whatever stands there."""
    text = data.decode("latin-1")
    seconds = retry_after(data)
    assert seconds is None or 0 <= seconds <= MAX_RETRY_AFTER
    number = allow(ValueError, float, text)
    assert number is None or (seconds is None) == math.isnan(number)


def check_source(data: bytes) -> None:
    """The first line is the peer's address, the others are headers. Nobody but a trusted proxy is believed."""
    peer, *lines = data.split(b"\n")
    client = (peer.decode("latin-1"), 1) if peer else None
    headers = [(b"x-forwarded-for", line) for line in lines] + [(b"host", b"x")]
    source = source_of(client, headers, PROXIES)
    if client is None:
        assert source is None
        return
    trusted = _trusted(client[0])
    assert source is not None
    if not trusted:
        assert source in (client[0], str(address(client[0])))
    else:
        hops = [hop.strip().decode("latin-1") for line in lines for hop in line.split(b",")]
        untrusted = [hop for hop in hops if not _trusted(hop)]
        assert _trusted(source) or untrusted, "a stranger's address comes from a header only"
        assert address(source) is not None
    assert source_of(client, headers) == client[0]
    within(source, ("10.0.0.0/8", "::/0"))


def _trusted(text: str) -> bool:
    found = address(text)
    return found is not None and any(found in network for network in PROXIES)


VIRTUAL_KEY = Harness("key", check_key)
RETRY_AFTER = Harness("retry-after", check_retry_after)
SOURCE = Harness("source", check_source)
