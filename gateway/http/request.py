"""A client's request, as it comes: what it asks, from where, and the id of the call."""

from __future__ import annotations

import itertools
import re
import secrets
from collections.abc import Iterable
from typing import Final
from urllib.parse import unquote_to_bytes

from gateway.auth.networks import Network, address
from gateway.core.errors import BadFraming, GatewayError, HeadersTooLarge

HEAD_BYTES: Final = 40 * 1024
"""Of a request's first line and headers."""
HEAD_LINES: Final = 256
BOOT: Final = secrets.token_hex(6)
"""Names this worker: the first part of the ids of its calls."""
_serial = itertools.count(1)
_PORT: Final = re.compile(r"^(?:([0-9.]+)|\[([0-9A-Fa-f:.]+)\])(?::[0-9]+)?$")
_SLASHES: Final = re.compile("/{2,}")
_PLAIN: Final = re.compile("/|(/(?!v1/v1/)[^/]+)+")


class Request:
    """What a client asks. Once `method` is set, the head is whole; the body may still be coming."""

    __slots__ = ("expects", "headers", "is_whole", "keeps_alive", "method", "pieces", "target", "unread", "version")

    def __init__(self) -> None:
        self.method = self.version = ""
        self.target = b""
        """As it was sent: path and query, or a whole URL."""
        self.headers: list[tuple[bytes, bytes]] = []
        """Names in lower case."""
        self.pieces: list[bytes] = []
        """Of the body: those that have come, and that nobody has taken."""
        self.unread = 0
        """Their bytes together."""
        self.is_whole = False
        """All of the body has come."""
        self.keeps_alive = False
        """The client means to use its connection again."""
        self.expects = False
        """It waits to be told to go on before it sends the body."""

    def begin(self, method: bytes, version: str, keeps_alive: bool) -> GatewayError | None:
        """The head is whole; what is wrong with it."""
        self.method, self.version, self.keeps_alive = method.decode("ascii"), version, keeps_alive
        headers, size, coded = self.headers, len(self.target), False
        for name, value in headers:
            size += len(name) + len(value) + 4
            if name == b"expect":
                self.expects = version == "1.1" and value.lower() == b"100-continue"
            elif name == b"transfer-encoding":
                coded = True
        if size > HEAD_BYTES or len(headers) > HEAD_LINES:
            return too_large()
        if version not in ("1.0", "1.1"):
            return BadFraming(f"This is HTTP/1.1, not HTTP/{version}.")
        if coded and version == "1.0":
            return BadFraming("HTTP/1.0 has no transfer codings.")
        if method == b"CONNECT":
            return BadFraming("This is no proxy: CONNECT is not possible.")
        return None

    def take(self) -> bytes:
        """What has come of the body since the last time."""
        pieces = self.pieces
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self.unread = 0
        return data

    @property
    def path(self) -> str:
        """Without the query, its quoted bytes as what they stand for.

        Also without `//`, `/v1/v1` and a slash at its end, which base URLs and clients' paths often come to together.
        """
        path = self.target.partition(b"#")[0].partition(b"?")[0]
        if not path.startswith(b"/") and b"://" in path:
            path = b"/" + path.partition(b"://")[2].partition(b"/")[2]
        text = unquote_to_bytes(path).decode("utf-8", "replace")
        return text if _PLAIN.fullmatch(text) else _plain(text)

    @property
    def query(self) -> bytes:
        """What stands behind the question mark, as it was sent."""
        return self.target.partition(b"#")[0].partition(b"?")[2]


def _plain(path: str) -> str:
    path = _SLASHES.sub("/", path)
    while path.startswith("/v1/v1/"):
        path = path[3:]
    return path.rstrip("/") or "/"


def too_large() -> HeadersTooLarge:
    """The head is larger than is taken."""
    return HeadersTooLarge(f"The head has more than {HEAD_BYTES} bytes or {HEAD_LINES} lines.")


def new_id() -> str:
    """The id of a call, unique for ever."""
    return f"tl-{BOOT}-{next(_serial):x}"


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
