"""HTTP/1.1 as its client speaks it, without sockets: the bytes of a request, and an answer put together from bytes.

Heads are read here, strictly, because they decide where an answer ends; chunks are taken apart by llhttp, at C speed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final, overload

from httptools import HttpParserError, HttpResponseParser

from gateway.core.errors import BadReply, Disconnected

HEAD_BYTES: Final = 64 * 1024
HEAD_LINES: Final = 256
INTERIM_ANSWERS: Final = 32
"""Heads of status 1xx that may come before the answer."""
FRAMING_BYTES: Final = 64 * 1024
"""Chunk extensions and trailers that may come in a row; nobody reads them."""

_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: [^\r\n]*)?(?=\r\n|\Z)")
_FIELD = re.compile(rb"\r\n([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n]*)")
_LENGTH = re.compile(rb"[0-9]{1,18}")
_TIMEOUT = re.compile(rb"(?:^|[,; ])timeout=([0-9]{1,6})(?:$|[,; ])", re.IGNORECASE)
_CONTROLS = bytes({*range(32), 127} - set(b"\t\r\n"))
_CHUNKED_FOLLOWS = b"HTTP/1.1 200 OK\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
"""Brings llhttp to the first chunk; it takes what is behind the last one for an error, as it should here."""

_HEAD, _LENGTH_KNOWN, _CHUNKED, _UNTIL_CLOSE = range(4)

Pairs = Sequence[tuple[bytes, bytes]]


class Headers(list[tuple[bytes, bytes]]):
    """The fields of an answer's head in their order, names in lower case, values without blanks around them; `first`
    has the first value of each name."""

    __slots__ = ("first",)

    def __init__(self, fields: Iterable[tuple[bytes, bytes]] = ()) -> None:
        super().__init__(fields)
        self.first = dict(reversed(self))

    @overload
    def get(self, name: bytes) -> bytes | None: ...
    @overload
    def get(self, name: bytes, default: bytes) -> bytes: ...
    def get(self, name: bytes, default: bytes | None = None) -> bytes | None:
        """The first value of `name`, which is in lower case."""
        return self.first.get(name, default)

    def all(self, name: bytes) -> list[bytes]:
        """Its values, one after the other."""
        return [value for field, value in self if field == name]


NO_HEADERS: Final = Headers()


def request_head(start: bytes, headers: Pairs, length: int | None) -> bytes:
    """A request's head from its `start`, which is its first line and the fields that are always the same.

    `length` is that of the body; None: it has none, and none is announced. Raises `ValueError` if a field holds a line
    break, for it would become two.
    """
    lines = [b"%b: %b\r\n" % pair for pair in headers]
    if length is not None:
        lines.append(b"content-length: %d\r\n" % length)
    fields = b"".join(lines)
    if fields.count(b"\n") != len(lines) or fields.count(b"\r") != len(lines):
        raise ValueError("a header field holds a line break")
    return b"%b%b\r\n" % (start, fields)


class Answer:
    """One answer, put together from what `feed` is given. Until the head has come, `status` is 0.

    `pieces` holds what has come of the body since it was last taken away, `held` the bytes that this is about.
    `complete` says that the message has ended well, `reusable` that the connection may then serve again.
    """

    __slots__ = (
        "_chunks",
        "_framing",
        "_framing_bytes",
        "_head",
        "_head_bytes",
        "_head_lines",
        "_interim",
        "_left",
        "_without_body",
        "complete",
        "headers",
        "held",
        "idle_seconds",
        "pieces",
        "reusable",
        "status",
    )

    def __init__(
        self, head_bytes: int = HEAD_BYTES, head_lines: int = HEAD_LINES, *, without_body: bool = False
    ) -> None:
        """`without_body`: the request was a HEAD, whose answer has none, whatever its head announces."""
        self._head_bytes, self._head_lines, self._without_body = head_bytes, head_lines, without_body
        self._framing, self._head, self._interim, self._left, self._framing_bytes = _HEAD, b"", 0, 0, 0
        self._chunks: _Chunks | None = None
        self.status = 0
        self.headers = NO_HEADERS
        self.pieces: list[bytes] = []
        self.held = 0
        self.complete = self.reusable = False
        self.idle_seconds: float | None = None
        """How long the server says that it keeps the connection without a request."""

    def feed(self, data: bytes) -> None:
        """Take in what has come. Raises `BadReply` for a head, `Disconnected` for a body that cannot be read."""
        if self._framing == _HEAD:
            data = self._feed_head(data)
            if not self.status:
                return
        if self.complete:
            if data:
                self.reusable = False  # nobody asked for what is behind an answer
        elif not data:
            return
        elif self._framing == _CHUNKED:
            self._feed_chunks(data)
        else:
            if self._framing == _LENGTH_KNOWN:
                self._left -= len(data)
                if self._left <= 0:
                    self.complete = True
                    if self._left:
                        self.reusable, data = False, data[: self._left]
            self.pieces.append(data)
            self.held += len(data)

    def end(self) -> None:
        """Nothing more comes, and that is no failure of the network. Raises `Disconnected` if more was due."""
        self.reusable = False
        if self._framing == _UNTIL_CLOSE:
            self.complete = True
        if not self.complete:
            raise Disconnected(self.missing())

    def missing(self) -> str:
        """What of the answer has not come, in words, for one whose connection has ended."""
        if self._framing == _HEAD:
            return "the connection ended in the head of an answer" if self._head else "the connection ended unanswered"
        if self._framing == _CHUNKED:
            return "the connection ended before the last chunk"
        return f"the connection ended {self._left} bytes too early" if self._left else "the connection broke"

    def take(self) -> bytes:
        """What has come of the body since this was last called, as one piece."""
        pieces = self.pieces
        self.held = 0
        if len(pieces) == 1:
            return pieces.pop()
        piece = b"".join(pieces)
        pieces.clear()  # the list stays the same: the chunks' parser adds to it
        return piece

    def _feed_chunks(self, data: bytes) -> None:
        chunks, before = self._chunks, len(self.pieces)
        assert chunks is not None
        self.held += len(data)
        try:
            chunks.parser.feed_data(data)
        except HttpParserError as error:
            if not chunks.end.come:
                raise Disconnected(f"the answer's chunks are broken: {error}") from error
            self.reusable = False  # it complains of what is behind the last chunk
        if chunks.end.come:
            self.complete = True
        elif len(self.pieces) > before:
            self._framing_bytes = 0
        else:
            self._framing_bytes += len(data)
            if self._framing_bytes > FRAMING_BYTES:
                raise Disconnected("the answer's chunks have endless extensions or trailers")

    def _feed_head(self, data: bytes) -> bytes:
        """Add to the head, and read it when it is whole; what is behind it."""
        before = len(self._head)
        data = self._head + data if before else data
        while (end := data.find(b"\r\n\r\n", max(0, before - 3))) >= 0:
            if end > self._head_bytes:
                break
            self._read_head(data[:end])
            data, before = data[end + 4 :], 0
            if self.status:
                self._head = b""
                return data
            self._interim += 1
            if self._interim > INTERIM_ANSWERS:
                raise BadReply(f"more than {INTERIM_ANSWERS} heads of status 1xx came instead of an answer")
        if len(data) > self._head_bytes:
            raise BadReply(f"the head of the answer is larger than {self._head_bytes} bytes")
        if not data.startswith(b"HTTP/1."[: len(data)]):
            raise BadReply("the answer is not HTTP/1.1")
        line = data.find(b"\n")
        if line > 0 and data[line - 1] != 13:
            raise BadReply("the lines of the answer's head do not end in CR LF")
        self._head = data
        return b""

    def _read_head(self, head: bytes) -> None:
        if (first := _STATUS_LINE.match(head)) is None:
            raise BadReply("the answer does not begin with a status line of HTTP/1.1")
        lines = head.count(b"\r\n")
        if lines >= self._head_lines:
            raise BadReply(f"the head of the answer has more than {self._head_lines} lines")
        if not head.count(b"\r") == head.count(b"\n") == lines or len(head.translate(None, _CONTROLS)) < len(head):
            raise BadReply("the head of the answer holds a control character")
        found = _FIELD.findall(head)
        if len(found) != lines:
            raise BadReply("a line in the head of the answer is no header field")
        status = int(first[2])
        if status == 101:
            raise BadReply("the answer changes to another protocol, which was not asked for")
        if status >= 200:
            self.headers = Headers([(name.lower(), value.rstrip(b" \t")) for name, value in found])
            self._begin_body(status, old=first[1] == b"0")
            self.status = status

    def _begin_body(self, status: int, *, old: bool) -> None:
        """Find out where the body ends; `old`: the head is HTTP/1.0's."""
        length, coding = self._framing_fields(old)
        if coding is not None and (length is not None or old or coding != b"chunked"):
            what = "a length" if length is not None else "HTTP/1.0" if old else "another transfer coding"
            raise BadReply(f"the answer has {what} beside chunks")
        if self._without_body or status in (204, 304):
            self._framing, self.complete = _LENGTH_KNOWN, True
        elif coding is not None:
            self._framing, self._chunks = _CHUNKED, _Chunks(self.pieces)
        elif length is not None:
            self._framing, self._left = _LENGTH_KNOWN, int(length)
            self.complete = not self._left
        else:
            self._framing, self.reusable = _UNTIL_CLOSE, False

    def _framing_fields(self, old: bool) -> tuple[bytes | None, bytes | None]:
        """Content length and transfer coding; notes what the head says of the connection."""
        headers, first = self.headers, self.headers.first
        length, coding = first.get(b"content-length"), first.get(b"transfer-encoding")
        options, alive = first.get(b"connection"), first.get(b"keep-alive")
        if length is not None and not _LENGTH.fullmatch(length):
            raise BadReply("the answer's length is no number")
        if len(first) < len(headers):  # something stands there more than once
            if any(other != length for other in headers.all(b"content-length")):
                raise BadReply("the answer has several lengths")
            if len(headers.all(b"transfer-encoding")) > 1:
                coding = b"several"
            options, alive = b",".join(headers.all(b"connection")), b",".join(headers.all(b"keep-alive"))
        if alive and (seconds := _TIMEOUT.search(alive)) is not None:
            self.idle_seconds = float(seconds[1])
        named = {option.strip(b" \t") for option in options.lower().split(b",")} if options else ()
        self.reusable = b"close" not in named and (not old or b"keep-alive" in named)
        return length, coding and coding.lower()


class _Chunks:
    """llhttp, brought to the first chunk of a body: adds what is in chunks to `pieces`."""

    __slots__ = ("end", "parser")

    def __init__(self, pieces: list[bytes]) -> None:
        self.end = _End(pieces)
        self.parser = HttpResponseParser(self.end)
        self.parser.feed_data(_CHUNKED_FOLLOWS)


class _End:
    """What llhttp calls. It does not know the parser, so that no circle is left for the garbage collector."""

    __slots__ = ("come", "on_body")

    def __init__(self, pieces: list[bytes]) -> None:
        self.come = False
        self.on_body = pieces.append

    def on_message_complete(self) -> None:
        self.come = True
