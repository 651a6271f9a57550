"""Bytes become requests, in the same way wherever they are cut, or are refused."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from gateway.core.errors import BadFraming, GatewayError, HeadersTooLarge
from gateway.http.parser import RequestParser
from gateway.http.request import HEAD_BYTES, HEAD_LINES

POST = b"POST /a?b=c HTTP/1.1\r\nHost: x\r\nX-Empty:\r\n"
CHUNKED = b"transfer-encoding: chunked\r\n\r\n"
UPGRADE = b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n"
GET = b"GET /next HTTP/1.1\r\nhost: y\r\n\r\n"


class Seen(NamedTuple):
    method: str
    target: bytes
    body: bytes
    is_whole: bool
    names: frozenset[bytes]


def seen(*pieces: bytes) -> list[Seen | type[GatewayError]]:
    """What these pieces are read as; behind it the error of a body, if there is one."""
    parser = RequestParser()
    for piece in pieces:
        parser.feed(piece)
    found: list[Seen | type[GatewayError]] = []
    for request in parser.requests:
        if isinstance(request, GatewayError):
            found.append(type(request))
        else:
            names = frozenset(name for name, _ in request.headers)
            found.append(Seen(request.method, request.target, b"".join(request.pieces), request.is_whole, names))
    return found if parser.broken is None else [*found, type(parser.broken)]


NEXT = Seen("GET", b"/next", b"", True, frozenset({b"host"}))
WHOLE = {
    "a length": POST + b"content-length: 5\r\n\r\nhello",
    "chunks": POST + CHUNKED + b"3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n",
    "trailers": POST + CHUNKED + b"5\r\nhello\r\n0\r\nauthorization: x\r\nhost: evil\r\n\r\n",
    "h2c, a length": POST + UPGRADE + b"content-length: 5\r\n\r\nhello",
    "h2c, chunks": POST + UPGRADE + CHUNKED + b"5\r\nhello\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("name", WHOLE)
def test_requests_are_the_same_wherever_they_are_cut(name: str) -> None:
    raw = WHOLE[name] + GET
    found = seen(raw)
    (first, second) = found
    assert isinstance(first, Seen)
    assert first[:4] == ("POST", b"/a?b=c", b"hello", True)
    assert b"authorization" not in first.names, "what stands behind the body is no header"
    assert (b"upgrade" in first.names) is name.startswith("h2c"), "whoever looks for it finds it"
    assert second == NEXT
    for at in range(1, len(raw)):
        assert seen(raw[:at], raw[at:]) == found, at
    assert seen(*(bytes([byte]) for byte in raw)) == found


def test_an_old_client_that_offers_another_protocol_stays_an_old_one() -> None:
    parser = RequestParser()
    parser.feed(b"GET / HTTP/1.0\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n")
    (request,) = parser.requests
    assert not isinstance(request, GatewayError)
    assert (request.version, request.keeps_alive) == ("1.0", False)


def test_half_a_request_is_none_yet() -> None:
    assert seen(POST) == []
    half = seen(POST + b"content-length: 5\r\n\r\nhel")
    assert [each.is_whole for each in half if isinstance(each, Seen)] == [False]


REFUSED = {
    "no version": b"GET /\r\n\r\n",
    "version 0.9": b"GET / HTTP/0.9\r\n\r\n",
    "version 2.0": b"GET / HTTP/2.0\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "NULs": b"\0" * 100,
    "a NUL in the target": b"GET /\0 HTTP/1.1\r\n\r\n",
    "a NUL in a name": b"GET / HTTP/1.1\r\na\0: b\r\n\r\n",
    "a NUL in a value": b"GET / HTTP/1.1\r\na: b\0\r\n\r\n",
    "LF alone": b"GET / HTTP/1.1\nhost: x\n\n",
    "CR in a value": b"GET / HTTP/1.1\r\na: b\rc: d\r\n\r\n",
    "a folded line": b"GET / HTTP/1.1\r\na: b\r\n c\r\n\r\n",
    "a space before the colon": b"GET / HTTP/1.1\r\na : b\r\n\r\n",
    "no such method": b"FETCH / HTTP/1.1\r\n\r\n",
    "CONNECT": b"CONNECT x:443 HTTP/1.1\r\nhost: x\r\n\r\n",
    "chunks in HTTP/1.0": b"POST / HTTP/1.0\r\n" + CHUNKED + b"0\r\n\r\n",
    "two lengths": POST + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
    "a length and chunks": POST + b"content-length: 5\r\n" + CHUNKED + b"0\r\n\r\n",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_request_is_refused_and_nothing_behind_it_is_read(name: str) -> None:
    raw = REFUSED[name]
    assert seen(raw + GET) == [BadFraming]
    assert seen(*(bytes([byte]) for byte in raw + GET)) == [BadFraming]
    assert seen(GET + raw, GET) == [NEXT, BadFraming]


@pytest.mark.parametrize("size", [1, 1000, 16 * 1024])
@pytest.mark.parametrize("lines", [1, HEAD_LINES - 1])
def test_a_head_up_to_the_limit_is_read_however_it_comes(lines: int, size: int) -> None:
    value = b"v" * ((HEAD_BYTES - 100) // lines - 10)
    raw = b"GET / HTTP/1.1\r\n" + b"".join(b"x%04d: %b\r\n" % (number, value) for number in range(lines)) + b"\r\n"
    assert len(raw) < HEAD_BYTES
    found = seen(*(raw[at : at + size] for at in range(0, len(raw), size)))
    assert [each.is_whole for each in found if isinstance(each, Seen)] == [True]


@pytest.mark.parametrize("size", [1, 1000, 16 * 1024, 10**6])
@pytest.mark.parametrize(
    "lines",
    [[b"x: " + b"v" * HEAD_BYTES], [b"x" * HEAD_BYTES + b": v"], [b"x: v"] * (HEAD_LINES + 1)],
    ids=["a long value", "a long name", "many lines"],
)
def test_a_head_beyond_the_limit_is_refused(lines: list[bytes], size: int) -> None:
    raw = b"GET / HTTP/1.1\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n"
    assert seen(*(raw[at : at + size] for at in range(0, len(raw), size))) == [HeadersTooLarge]


def test_a_long_target_is_refused() -> None:
    assert seen(b"GET /" + b"x" * HEAD_BYTES + b" HTTP/1.1\r\n\r\n") == [HeadersTooLarge]


def test_a_head_without_an_end_is_refused_before_it_ends() -> None:
    parser = RequestParser()
    parser.feed(b"GET / HTTP/1.1\r\nx: ")
    for _ in range(HEAD_BYTES // 1024 + 1):
        parser.feed(b"v" * 1024)
    assert [type(error) for error in parser.requests] == [HeadersTooLarge]


def test_small_chunks_are_taken_but_not_for_ever() -> None:
    parser = RequestParser()
    parser.feed(POST + CHUNKED)
    (request,) = parser.requests
    assert not isinstance(request, GatewayError)
    for _ in range(4000):
        parser.feed(b"1\r\nx\r\n")
    assert (parser.broken, request.unread) == (None, 4000)
    for _ in range(4000):
        parser.feed(b"1\r\nx\r\n")
    assert isinstance(parser.broken, BadFraming)
    assert request.unread < 5000
    assert not request.is_whole


def test_what_stands_beside_chunks_has_an_end() -> None:
    for beside in (b"5;" + b"x" * 1000, b"0\r\nx: " + b"y" * 1000):
        parser = RequestParser()
        parser.feed(POST + CHUNKED)
        parser.feed(beside)
        for _ in range(20):
            parser.feed(b"z" * 1000)
        assert isinstance(parser.broken, BadFraming)


def test_a_large_body_with_a_request_behind_it_is_no_waste() -> None:
    raw = POST + b"content-length: 60000\r\n\r\n" + b"x" * 60_000
    found = seen(raw[:200], raw[200:] + GET * 3, GET)
    assert found[1:] == [NEXT] * 4


def test_a_broken_body_takes_nothing_from_the_requests_before_it() -> None:
    found = seen(GET + POST + CHUNKED + b"zz\r\n" + GET)
    assert found[0] == NEXT
    assert found[2:] == [BadFraming]
