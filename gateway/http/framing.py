"""Heads that a proxy before us may have read in another way than we do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gateway.core.errors import BadFraming

ONCE: Final = frozenset(
    {b"api-key", b"authorization", b"content-length", b"content-type", b"host", b"transfer-encoding", b"x-api-key"}
)
"""Headers of which two would be two requests in one, or two callers."""
H2C: Final = b"h2c"
"""Offered by some clients, Java's among them, with every request; as HTTP wants, who does not take it overlooks it."""
SUSPECT: Final = frozenset({b"transfer-encoding", b"upgrade"})
"""Most requests have neither, and each header once: there is nothing to look at then."""


def refuse_ambiguous(headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Raise `BadFraming` for headers by which the request's length, kind or caller is not one and the same for all."""
    seen: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in ONCE and name in seen:
            raise BadFraming(f"The header '{name.decode('ascii')}' was sent more than once.")
        seen[name] = value
    coding = seen.get(b"transfer-encoding")
    if coding is not None and coding.lower() != b"chunked":
        raise BadFraming("The only transfer coding that is taken is 'chunked'.")
    if coding is not None and b"content-length" in seen:
        raise BadFraming("A body has a content-length or is chunked, not both.")
    if seen.get(b"upgrade", H2C).lower() != H2C:
        raise BadFraming("This is HTTP/1.1 and stays so: send no 'upgrade' header.")
