"""Requests that two servers in a row may read in two ways. Data only; test_hostile_framing.py sends them.

`TRAP` is a whole request for the model "trap", which stands behind each case that is not `TAKEN`: who reads a case's
length in another way than it is meant reads the trap as a request of its own.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class Fate(Enum):
    """What becomes of a case."""

    REFUSED = "answered with 4xx, or not at all, and the connection is closed"
    CLOSED = "read as one request, and nothing behind it is read"
    TAKEN = "read as one request"


class Case(NamedTuple):
    name: str
    raw: bytes
    fate: Fate = Fate.REFUSED


PATH = b"/v1/chat/completions"
BODY = b'{"model":"solo","messages":[{"role":"user","content":"Hi"}]}'
_TRAP_BODY = BODY.replace(b'"solo"', b'"trap"')
KEY = b"@KEY@"
"""Stands for a virtual key."""
_LINES = b"host: x\r\ncontent-type: application/json\r\nauthorization: Bearer " + KEY + b"\r\n"
HEAD = b"POST " + PATH + b" HTTP/1.1\r\n" + _LINES
LENGTH = b"content-length: %d\r\n" % len(BODY)
CHUNKED = b"transfer-encoding: chunked\r\n"
PIECES = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
TRAP = HEAD + b"content-length: %d\r\n\r\n" % len(_TRAP_BODY) + _TRAP_BODY


def _length(lines: bytes) -> bytes:
    """A request with these header lines and the body."""
    return HEAD + lines + b"\r\n" + BODY


def _coding(value: bytes, more: bytes = b"") -> bytes:
    """A request with this transfer coding, and a chunked body."""
    return HEAD + b"transfer-encoding:" + value + b"\r\n" + more + b"\r\n" + PIECES


def _pieces(pieces: bytes) -> bytes:
    """A chunked request with these bytes as its body."""
    return HEAD + CHUNKED + b"\r\n" + pieces


def _line(line: bytes) -> bytes:
    """A request with this request line."""
    return line + b"\r\n" + _LINES + LENGTH + b"\r\n" + BODY


_SIZE = b"%x" % len(BODY)
CASES = (
    # Two lengths.
    Case("CL.TE, the length ends early", HEAD + b"content-length: 4\r\n" + CHUNKED + b"\r\n" + PIECES),
    Case("TE.CL, the length ends early", HEAD + CHUNKED + b"content-length: 4\r\n\r\n" + PIECES),
    Case("CL.TE, the length goes on", HEAD + b"content-length: 400\r\n" + CHUNKED + b"\r\n" + PIECES),
    Case("CL.TE, no chunk", HEAD + b"content-length: 4\r\n" + CHUNKED + b"\r\n0\r\n\r\n"),
    Case("TE.CL, no chunk", HEAD + CHUNKED + b"content-length: 4\r\n\r\n0\r\n\r\n"),
    Case("two lengths", _length(LENGTH + b"content-length: 0\r\n")),
    Case("two lengths, the other way", _length(b"content-length: 0\r\n" + LENGTH)),
    Case("two lengths in one", _length(b"content-length: %d, 0\r\n" % len(BODY))),
    Case("the same length twice in one", _length(b"content-length: %d, %d\r\n" % (len(BODY), len(BODY)))),
    Case("the same length twice", _length(LENGTH * 2)),
    Case("length with a plus", _length(b"content-length: +%d\r\n" % len(BODY))),
    Case("length with a minus", _length(b"content-length: -%d\r\n" % len(BODY))),
    Case("length in hexadecimal", _length(b"content-length: 0x%x\r\n" % len(BODY))),
    Case("length with a fraction", _length(b"content-length: %d.0\r\n" % len(BODY))),
    Case("length with an exponent", _length(b"content-length: 6e1\r\n")),
    Case("length with an underscore", _length(b"content-length: 6_0\r\n")),
    Case("length in other digits", _length("content-length: \u0666\u0660\r\n".encode())),
    Case("length with a space in it", _length(b"content-length: 6 0\r\n")),
    Case("length of nothing", _length(b"content-length:\r\n")),
    Case("length beyond 64 bits", _length(b"content-length: 18446744073709551676\r\n")),
    Case("length with leading zeros", _length(b"content-length: 000%d\r\n" % len(BODY)), Fate.TAKEN),
    Case("length with a tab", _length(b"content-length:\t%d\t\r\n" % len(BODY)), Fate.TAKEN),
    Case("length by another name", _length(b"content_length: 0\r\n" + LENGTH), Fate.TAKEN),
    # Transfer codings that one server knows and the next one does not.
    Case("coding unknown", _coding(b" xchunked")),
    Case("coding identity", _coding(b" identity", LENGTH)),
    Case("coding gzip", _coding(b" gzip")),
    Case("coding gzip, chunked", _coding(b" gzip, chunked")),
    Case("coding chunked, identity", _coding(b" chunked, identity")),
    Case("coding chunked, chunked", _coding(b" chunked, chunked")),
    Case("coding with a comma before", _coding(b" ,chunked")),
    Case("coding with a comma behind", _coding(b" chunked,")),
    Case("coding with a parameter", _coding(b" chunked;q=1")),
    Case("coding in quotes", _coding(b' "chunked"')),
    Case("coding with a vertical tab", _coding(b" \x0bchunked")),
    Case("coding with a form feed", _coding(b" chunked\x0c")),
    Case("coding with a NUL", _coding(b" chunked\x00")),
    Case("coding with a wide space", _coding(b" \xa0chunked")),
    Case("coding of nothing", _coding(b"")),
    Case("coding twice", _coding(b" chunked", CHUNKED)),
    Case("coding twice, identity first", _coding(b" identity", CHUNKED)),
    Case("coding twice, identity last", _coding(b" chunked", b"transfer-encoding: identity\r\n")),
    Case("coding on a folded line", _coding(b"\r\n chunked")),
    Case("coding, space before the colon", HEAD + b"transfer-encoding : chunked\r\n\r\n" + PIECES),
    Case("coding, tab before the colon", HEAD + b"transfer-encoding\t: chunked\r\n\r\n" + PIECES),
    Case("coding, space before the name", HEAD + b" transfer-encoding: chunked\r\n\r\n" + PIECES),
    Case("coding of an old version", (HEAD + CHUNKED).replace(b"HTTP/1.1", b"HTTP/1.0") + b"\r\n" + PIECES),
    Case("coding in capitals", _coding(b" CHUNKED"), Fate.TAKEN),
    Case("coding with a tab", _coding(b"\tchunked\t")),
    Case("coding named as a hop", HEAD + CHUNKED + b"connection: transfer-encoding\r\n\r\n" + PIECES, Fate.TAKEN),
    # Chunks.
    Case("chunk size 0x", _pieces(b"0x" + _SIZE + b"\r\n" + BODY + b"\r\n0\r\n\r\n")),
    Case("chunk size negative", _pieces(b"-1\r\n" + BODY + b"\r\n0\r\n\r\n")),
    Case("chunk size with a plus", _pieces(b"+" + _SIZE + b"\r\n" + BODY + b"\r\n0\r\n\r\n")),
    Case("chunk size missing", _pieces(b"\r\n" + BODY + b"\r\n0\r\n\r\n")),
    Case("chunk size beyond 64 bits", _pieces(b"1000000000000003c\r\n" + BODY + b"\r\n0\r\n\r\n")),
    Case("chunk size of no hexadecimal digit", _pieces(b"zz\r\n" + BODY + b"\r\n0\r\n\r\n")),
    Case("chunk size ended by LF", _pieces(_SIZE + b"\n" + BODY + b"\r\n0\r\n\r\n")),
    Case("chunk size ended by CR", _pieces(_SIZE + b"\r" + BODY + b"\r\n0\r\n\r\n")),
    Case("chunk too long", _pieces(_SIZE + b"\r\n" + BODY + b"XX\r\n0\r\n\r\n")),
    Case("chunk not ended", _pieces(_SIZE + b"\r\n" + BODY + b"0\r\n\r\n")),
    Case("chunk ended by LF", _pieces(_SIZE + b"\r\n" + BODY + b"\n0\r\n\r\n")),
    Case("chunk extension ended by LF", _pieces(_SIZE + b";a\n" + BODY + b"\r\n0\r\n\r\n")),
    Case("chunk extension of 100 kB", _pieces(_SIZE + b";" + b"a" * 100_000 + b"\r\n" + BODY + b"\r\n0\r\n\r\n")),
    Case("chunk extension", _pieces(_SIZE + b';a="b\\"";c\r\n' + BODY + b"\r\n0\r\n\r\n"), Fate.TAKEN),
    Case("chunk size with leading zeros", _pieces(b"0000" + _SIZE + b"\r\n" + BODY + b"\r\n0\r\n\r\n"), Fate.TAKEN),
    Case("trailers that change the length", _pieces(PIECES[:-2] + b"content-length: 9\r\n\r\n")),
    Case("trailers with a key", _pieces(PIECES[:-2] + b"authorization: Bearer x\r\n\r\n"), Fate.TAKEN),
    # Lines of the head.
    Case("bare LF as line end", _length(LENGTH).replace(b"\r\n", b"\n")),
    Case("bare LF before the length", _length(b"x-a: b\n" + LENGTH)),
    Case("bare CR as line end", _length(b"x-a: b\r" + LENGTH)),
    Case("bare CR in a value", _length(b"x-a: b\rc\r\n" + LENGTH)),
    Case("NUL in a value", _length(b"x-a: b\x00c\r\n" + LENGTH)),
    Case("NUL in a name", _length(b"x\x00a: b\r\n" + LENGTH)),
    Case("folded line", _length(b"x-a: b\r\n c\r\n" + LENGTH)),
    Case("folded length", _length(b"content-length:\r\n %d\r\n" % len(BODY))),
    Case("space in a name", _length(b"x a: b\r\n" + LENGTH)),
    Case("space before the colon", _length(b"content-length : %d\r\n" % len(BODY))),
    Case("line without a colon", _length(b"xa\r\n" + LENGTH)),
    Case("line without a name", _length(b": b\r\n" + LENGTH)),
    Case("no ASCII in a name", _length(b"x\xe9: b\r\n" + LENGTH)),
    Case("two hosts", _length(b"host: evil\r\n" + LENGTH)),
    Case("two keys", _length(b"authorization: Bearer other\r\n" + LENGTH)),
    Case("two content types", _length(b"content-type: text/plain\r\n" + LENGTH)),
    Case("empty lines before", b"\r\n\r\n" + _length(LENGTH), Fate.TAKEN),
    # Request lines.
    Case("two spaces", _line(b"POST  " + PATH + b" HTTP/1.1"), Fate.TAKEN),
    Case("tabs", _line(b"POST\t" + PATH + b"\tHTTP/1.1")),
    Case("space in the path", _line(b"POST " + PATH + b" /x HTTP/1.1")),
    Case("NUL in the path", _line(b"POST " + PATH + b"\x00 HTTP/1.1")),
    Case("no version", _line(b"POST " + PATH)),
    Case("version 1.2", _line(b"POST " + PATH + b" HTTP/1.2")),
    Case("version 2", _line(b"POST " + PATH + b" HTTP/2")),
    Case("version in small letters", _line(b"POST " + PATH + b" http/1.1")),
    Case("GET with a body", _line(b"GET " + PATH + b" HTTP/1.1")),
    Case("absolute form", _line(b"POST http://evil" + PATH + b" HTTP/1.1"), Fate.TAKEN),
    Case("a fragment", _line(b"POST " + PATH + b"#x HTTP/1.1"), Fate.TAKEN),
    Case("method in small letters", _line(b"post " + PATH + b" HTTP/1.1")),
    # Other protocols on the same connection.
    Case("upgrade to websocket", _length(b"connection: upgrade\r\nupgrade: websocket\r\n" + LENGTH)),
    Case(
        "upgrade to h2c",
        _length(b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n" + LENGTH),
        Fate.TAKEN,
    ),
    Case("upgrade to TLS", _length(b"connection: upgrade\r\nupgrade: TLS/1.0\r\n" + LENGTH)),
    Case("early upgrade", _length(b"upgrade: websocket\r\n" + LENGTH) + b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    Case("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"),
    Case("CONNECT", b"CONNECT evil:80 HTTP/1.1\r\nhost: evil:80\r\n\r\n"),
)
