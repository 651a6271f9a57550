"""What clients send, read as requests: HTTP/1.1 without I/O. The parser below, llhttp (httptools), is strict."""

from __future__ import annotations

from collections import deque
from typing import Any, Final

import httptools

from gateway.core.errors import BadFraming, GatewayError
from gateway.http.request import HEAD_BYTES, Request, too_large

WASTE_BYTES: Final = 16 * 1024
"""What a body may have besides twice itself: a chunk's size and what may stand beside it."""


class RequestParser:
    """Reads the requests of one connection, each of which is in `requests` as soon as its head is whole."""

    __slots__ = ("_head_bytes", "_offered", "_parser", "_waste", "broken", "coming", "is_deaf", "requests")

    def __init__(self) -> None:
        self.requests: deque[Request | GatewayError] = deque()
        """Those that nobody has taken yet; an error is one that could not be read."""
        self.coming: Request | None = None
        """The one of which there is more to come."""
        self.is_deaf = False
        """What comes from here on cannot be understood."""
        self.broken: GatewayError | None = None
        """Why the body of the last request has no end."""
        self._parser: Any = httptools.HttpRequestParser(self)
        self._head_bytes = 0
        self._waste = 0
        """How much of what came for a body was none of it, less what is allowed for."""
        self._offered: list[tuple[bytes, bytes]] = []

    def feed(self, data: bytes | bytearray) -> None:
        """Read on. Who gives it little at a time has little to hold: there is no end to requests within one piece."""
        if self.is_deaf:
            return
        before, size = self.coming, len(data)
        in_body = before is not None and before.method != ""
        while True:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                if self.is_deaf:
                    return
                data = self._without_upgrade() + data[upgrade.args[0] :]
                continue
            except httptools.HttpParserError as error:
                self._fail(BadFraming(f"This is not HTTP/1.1: {str(error).lower()}."))
                return
            break
        if self.coming is None or self.coming is not before:
            self._head_bytes = self._waste = 0  # what comes of it is counted from the next piece on
        else:
            self._weigh(size, in_body)

    def _weigh(self, size: int, in_body: bool) -> None:
        """So much has come of the same request as before."""
        if self.coming is None or not self.coming.method:
            self._head_bytes += size
            if self._head_bytes > HEAD_BYTES:
                self._fail(too_large())
        elif in_body:
            self._waste += size
            if self._waste > WASTE_BYTES:
                self._fail(BadFraming("The body's chunks are too small, or there is too much between them."))

    def close(self) -> None:
        """Let go of what is left: the parser below knows this object, and this one it."""
        self.is_deaf, self._parser, self.coming = True, None, None
        self.requests.clear()

    def _without_upgrade(self) -> bytes:
        """The head of the last request, to be read again without its offer of another protocol.

        Some clients, Java's among them, make it with every request, and nobody takes it here; but llhttp does not read
        the body behind it.
        """
        request = self.requests.pop()
        assert isinstance(request, Request)
        self._parser = httptools.HttpRequestParser(self)
        self._offered = [pair for pair in request.headers if pair[0] == b"upgrade"]
        rest = [b"%b: %b\r\n" % pair for pair in request.headers if pair[0] != b"upgrade"]
        line = b"%b %b HTTP/%b\r\n" % (request.method.encode(), request.target, request.version.encode())
        return b"".join((line, *rest, b"\r\n"))

    def _fail(self, error: GatewayError) -> None:
        if self.is_deaf:  # it was said already
            return
        coming, self.coming, self.is_deaf = self.coming, None, True
        if coming is None or not coming.method:
            self.requests.append(error)
        else:
            self.broken = error  # its head was good, and is being served, or waits for that

    # llhttp calls these.

    def on_message_begin(self) -> None:
        if not self.is_deaf:
            self.coming = Request()

    def on_url(self, target: bytes) -> None:
        if (coming := self.coming) is not None:
            coming.target += target

    def on_header(self, name: bytes, value: bytes) -> None:
        coming = self.coming
        if coming is not None and not coming.method:  # nothing is taken that stands behind the body
            coming.headers.append((name.lower(), value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        coming, parser = self.coming, self._parser
        if coming is None:
            return
        error = coming.begin(parser.get_method(), parser.get_http_version(), parser.should_keep_alive())
        if error is not None:
            coming.method = ""
            self._fail(error)
            return
        coming.headers += self._offered
        self._offered = []
        self.requests.append(coming)

    def on_body(self, data: bytes) -> None:
        if (coming := self.coming) is not None:
            coming.pieces.append(data)
            coming.unread += len(data)
            self._waste -= 2 * len(data)

    def on_message_complete(self) -> None:
        if (coming := self.coming) is not None:
            coming.is_whole, self.coming = True, None
