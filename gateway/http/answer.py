"""An answer on its way out: its head, its length or chunks, and whether the connection may be used again."""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from gateway.http.connection import Connection
    from gateway.http.request import Request

_LINES: Final = {status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode()) for status in HTTPStatus}
JOINED_BYTES: Final = 32 * 1024
"""A piece up to here leaves as one with its frame. A larger one is not copied: it may lie here, unread, for long."""
_NO_BODY: Final = frozenset({204, 304})


class Answer:
    """One answer. What is written leaves at once, or when the client takes it; the head leaves with the first piece."""

    __slots__ = (
        "_chunked",
        "_connection",
        "_has_body",
        "_head",
        "_left",
        "_request",
        "closes",
        "ended",
        "keeps_alive",
        "more",
        "started",
    )

    def __init__(self, connection: Connection, request: Request) -> None:
        self._connection, self._request = connection, request
        self.closes = False
        """The head is to tell the client to use another connection next time."""
        self.started = False
        self.ended = False
        """All of it was written."""
        self.more: list[tuple[bytes, bytes]] | None = None
        """Headers that whoever answers does not know of."""
        self.keeps_alive = False
        """The connection can be used again once the answer has ended."""
        self._head = b""
        self._chunked = False
        self._has_body = True
        self._left: int | None = None

    def start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Set the head. Without a content-length, the body goes out in chunks; of HTTP/1.0, until the connection ends.

        Raises `ValueError` for headers that would break the head apart.
        """
        request, length = self._request, None
        closes = self.closes or not request.keeps_alive or not request.is_whole
        lines = [_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status, self._connection.listener.date]
        for name, value in headers if self.more is None else (*headers, *self.more):
            if name == b"content-length":
                length = int(value)
            elif name == b"connection":
                closes |= value.lower() == b"close"
                continue
            lines.append(b"%b: %b\r\n" % (name, value))
        has_body = request.method != "HEAD" and status not in _NO_BODY
        chunked = has_body and length is None and request.version != "1.0"
        if chunked:
            lines.append(b"transfer-encoding: chunked\r\n")
        elif has_body and length is None:
            closes = True
        if closes:
            lines.append(b"connection: close\r\n")
        elif request.version == "1.0":
            lines.append(b"connection: keep-alive\r\n")
        head = b"".join(lines)
        if head.count(b"\n") != len(lines) or head.count(b"\r") != len(lines):
            raise ValueError(f"a header of the answer holds a line end: {head!r}")
        self._has_body, self._chunked, self._left = has_body, chunked, length
        self.keeps_alive, self.started, self._head = not closes, True, head + b"\r\n"
        request.expects = False  # told to go on now, the client would take it for a part of the answer

    def write(self, data: bytes | memoryview) -> None:
        """A piece of the body."""
        if not self._has_body or not data:
            return
        if self._left is not None:
            self._left -= len(data)
        head, self._head = self._head, b""
        if self._connection.lost:
            return
        if not self._chunked:
            self._connection.transport.write(head + data if head else data)
        elif len(data) <= JOINED_BYTES:
            self._connection.transport.write(b"".join((head, b"%x\r\n" % len(data), data, b"\r\n")))
        else:
            self._connection.transport.writelines((b"%b%x\r\n" % (head, len(data)), data, b"\r\n"))

    def end(self, data: bytes | memoryview = b"") -> None:
        """The rest of the body. It has not ended if that is not as much as the head had announced."""
        if not self._has_body:
            rest: bytes | memoryview = self._head
        elif self._chunked:
            piece = (b"%x\r\n" % len(data), data, b"\r\n") if data else ()
            rest = b"".join((self._head, *piece, b"0\r\n\r\n"))
        else:
            rest = self._head + data if self._head else data
            if self._left is not None:
                self._left -= len(data)
        self._head = b""
        self.ended = not self._has_body or not self._left
        if rest and not self._connection.lost:
            self._connection.transport.write(rest)
