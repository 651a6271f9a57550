"""Answers put together from bytes, however these are split: where they end, what is refused, what is left over."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.errors import BadReply, Disconnected, UpstreamError
from gateway.upstream.http1 import FRAMING_BYTES, INTERIM_ANSWERS, Answer, request_head

LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
KEPT = b"connection: keep-alive\r\n\r\n"
CLOSES = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\n"
HINTS = b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\ncontent-length: 3\r\n\r\n"


def told(pieces: list[bytes], *, ends: bool, without_body: bool = False) -> tuple[int, bytes, bool, bool, str]:
    """Status, body, complete, reusable and failure of an answer that comes in these pieces."""
    answer, failure = Answer(without_body=without_body), ""
    try:
        for piece in pieces:
            answer.feed(piece)
        if ends:
            answer.end()
    except UpstreamError as error:
        failure = f"{type(error).__name__}: {error}"
    return answer.status, answer.take(), answer.complete, answer.reusable, failure


def in_two(wire: bytes) -> list[list[bytes]]:
    return [[wire[:at], wire[at:]] for at in range(1, len(wire))]


WELL = {
    "length": (LENGTH + b"hello", 200, b"hello", True),
    "no bytes": (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", 200, b"", True),
    "no reason": (b"HTTP/1.1 200\r\ncontent-length: 2\r\n\r\nok", 200, b"ok", True),
    "an empty reason": (b"HTTP/1.1 200 \r\ncontent-length: 2\r\n\r\nok", 200, b"ok", True),
    "the same length twice": (LENGTH[:-2] + b"content-length: 5\r\n\r\nhello", 200, b"hello", True),
    "blanks around values": (b"HTTP/1.1 200 OK\r\ncontent-length: \t 2 \t\r\n\r\nok", 200, b"ok", True),
    "chunks": (CHUNKED + b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n", 200, b"hello world", True),
    "upper case": (CHUNKED.upper() + b"A\r\n01234567ab\r\n0\r\n\r\n", 200, b"01234567ab", True),
    "leading zeros": (CHUNKED + b"0005\r\nhello\r\n000\r\n\r\n", 200, b"hello", True),
    "extensions": (CHUNKED + b'5;name=value;other="a b"\r\nhello\r\n0;last\r\n\r\n', 200, b"hello", True),
    "trailers": (CHUNKED + b"5\r\nhello\r\n0\r\nx-took: 3\r\nx-more: 4\r\n\r\n", 200, b"hello", True),
    "no chunks": (CHUNKED + b"0\r\n\r\n", 200, b"", True),
    "continue": (b"HTTP/1.1 100 Continue\r\n\r\n" + LENGTH + b"hello", 200, b"hello", True),
    "early hints": (HINTS * 3 + LENGTH + b"hello", 200, b"hello", True),
    "no content": (b"HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\n", 204, b"", True),
    "not modified": (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n", 304, b"", True),
    "an error": (b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\nno", 503, b"no", True),
    "close": (LENGTH[:-2] + b"Connection: Close\r\n\r\nhello", 200, b"hello", False),
    "close among others": (LENGTH[:-2] + b"connection: x, close\r\nconnection: y\r\n\r\nhello", 200, b"hello", False),
    "chunks and close": (CHUNKED[:-2] + b"connection: close\r\n\r\n1\r\na\r\n0\r\n\r\n", 200, b"a", False),
    "HTTP/1.0": (LENGTH.replace(b"1.1", b"1.0") + b"hello", 200, b"hello", False),
    "HTTP/1.0, kept": (LENGTH.replace(b"1.1", b"1.0")[:-2] + KEPT + b"hello", 200, b"hello", True),
    "other alphabets": (b"HTTP/1.1 200 \xe4\r\na: \xc3\xa4\r\ncontent-length: 2\r\n\r\nok", 200, b"ok", True),
}  # fmt: skip


@pytest.mark.parametrize(("wire", "status", "body", "reusable"), WELL.values(), ids=WELL.keys())
def test_an_answer_is_complete_with_its_last_byte_wherever_it_is_split(
    wire: bytes, status: int, body: bytes, reusable: bool
) -> None:
    expected = status, body, True, reusable, ""
    for pieces in ([wire], *in_two(wire), [bytes([byte]) for byte in wire]):
        assert told(pieces, ends=False) == expected, pieces
    for at in range(len(wire)):  # an HTTP/1.1 answer of status 200 with an empty reason may end where another begins
        assert not told([wire[:at]], ends=False)[2], wire[:at]


@pytest.mark.parametrize(
    "head", [CLOSES, CLOSES.replace(b"1.1", b"1.0"), CLOSES[:-2] + b"connection: keep-alive\r\n\r\n"]
)
def test_an_answer_without_a_length_ends_with_its_connection(head: bytes) -> None:
    for body in (b"", b"some text"):
        wire = head + body
        for pieces in ([wire], *in_two(wire), [bytes([byte]) for byte in wire]):
            assert told(pieces, ends=False) == (200, body, False, False, "")
            assert told(pieces, ends=True) == (200, body, True, False, "")


def test_an_answer_to_a_head_request_has_no_body() -> None:
    for head in (LENGTH, CHUNKED, CLOSES):
        assert told([head], ends=False, without_body=True) == (200, b"", True, True, "")


def test_fields_are_found_by_their_names_in_lower_case() -> None:
    answer = Answer()
    answer.feed(b"HTTP/1.1 200 OK\r\nX-One:1\r\nx-one: 2\r\nEmpty:\r\nContent-Length: 0\r\n\r\n")
    assert answer.headers == [(b"x-one", b"1"), (b"x-one", b"2"), (b"empty", b""), (b"content-length", b"0")]
    assert (answer.headers.get(b"x-one"), answer.headers.get(b"empty")) == (b"1", b"")
    assert (answer.headers.get(b"other"), answer.headers.get(b"other", b"-")) == (None, b"-")


@pytest.mark.parametrize(
    ("field", "seconds"),
    [("timeout=5, max=100", 5), ("max=100,timeout=2", 2), ("max=1", None), ("timeout=x", None), ("xtimeout=3", None)],
)
def test_a_server_may_say_how_long_it_keeps_a_connection(field: str, seconds: float | None) -> None:
    answer = Answer()
    answer.feed(LENGTH[:-2] + f"Keep-Alive: {field}\r\n\r\nhello".encode())
    assert answer.idle_seconds == seconds


SHORT = {
    "nothing": (b"", b"", "unanswered"),
    "a part of the head": (LENGTH[:20], b"", "in the head"),
    "only an interim head": (b"HTTP/1.1 100 Continue\r\n\r\n", b"", "unanswered"),
    "short of its length": (LENGTH + b"hel", b"hel", "2 bytes too early"),
    "a head": (LENGTH, b"", "5 bytes too early"),
    "in a chunk": (CHUNKED + b"5\r\nhel", b"hel", "before the last chunk"),
    "between chunks": (CHUNKED + b"5\r\nhello\r\n", b"hello", "before the last chunk"),
    "in the last chunk": (CHUNKED + b"5\r\nhello\r\n0\r\n", b"hello", "before the last chunk"),
    "in a trailer": (CHUNKED + b"5\r\nhello\r\n0\r\nx-took: 3\r\n", b"hello", "before the last chunk"),
}


@pytest.mark.parametrize(("wire", "body", "why"), SHORT.values(), ids=SHORT.keys())
def test_an_end_before_the_last_byte_is_a_failure(wire: bytes, body: bytes, why: str) -> None:
    for pieces in ([wire] if wire else [], *in_two(wire)):
        _, got, complete, reusable, failure = told(pieces, ends=True)
        assert (got, complete, reusable) == (body, False, False)
        assert failure.startswith("Disconnected: the connection ended") and why in failure


REFUSED = {
    "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n",
    "one byte that is no HTTP": b"{",
    "HTTP/2": b"HTTP/2 200 OK\r\n\r\n",
    "another version": b"HTTP/1.2 200 OK\r\n\r\n",
    "no status": b"HTTP/1.1 OK\r\n\r\n",
    "a status of two digits": b"HTTP/1.1 20 OK\r\n\r\n",
    "a status of four digits": b"HTTP/1.1 2000 OK\r\n\r\n",
    "a status that begins with zero": b"HTTP/1.1 020 OK\r\n\r\n",
    "lines that end in LF": b"HTTP/1.1 200 OK\ncontent-length: 2\n\nok",
    "one line that ends in LF": b"HTTP/1.1 200 OK\r\na: b\ncontent-length: 2\r\n\r\nok",
    "a CR alone": b"HTTP/1.1 200 OK\r\na: b\rc: d\r\n\r\n",
    "a null byte": b"HTTP/1.1 200 OK\r\na: b\0\r\n\r\n",
    "a control character": b"HTTP/1.1 200 OK\r\na: b\x1b[2J\r\n\r\n",
    "a line without a colon": b"HTTP/1.1 200 OK\r\nnothing\r\n\r\n",
    "a name with a blank": b"HTTP/1.1 200 OK\r\ncontent-length : 5\r\n\r\nhello",
    "no name": b"HTTP/1.1 200 OK\r\n: 5\r\n\r\nhello",
    "a folded line": b"HTTP/1.1 200 OK\r\na: b\r\n c\r\n\r\n",
    "two lengths": LENGTH[:-2] + b"content-length: 6\r\n\r\nhello",
    "two lengths in one field": b"HTTP/1.1 200 OK\r\ncontent-length: 5, 5\r\n\r\nhello",
    "a length below zero": b"HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\nhello",
    "a length with a sign": b"HTTP/1.1 200 OK\r\ncontent-length: +5\r\n\r\nhello",
    "a length in hexadecimal": b"HTTP/1.1 200 OK\r\ncontent-length: 0x5\r\n\r\nhello",
    "a length with an underscore": b"HTTP/1.1 200 OK\r\ncontent-length: 1_0\r\n\r\nhello",
    "a length of 19 digits": b"HTTP/1.1 200 OK\r\ncontent-length: " + b"1" * 19 + b"\r\n\r\n",
    "no length": b"HTTP/1.1 200 OK\r\ncontent-length:\r\n\r\nhello",
    "a length beside chunks": CHUNKED[:-2] + b"content-length: 5\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "chunks beside a length": LENGTH[:-2] + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks of HTTP/1.0": CHUNKED.replace(b"1.1", b"1.0") + b"0\r\n\r\n",
    "another coding": b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked twice": CHUNKED[:-2] + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked that is none": b"HTTP/1.1 200 OK\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "another protocol": b"HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\n\r\n",
    "endless interim heads": b"HTTP/1.1 100 Continue\r\n\r\n" * (INTERIM_ANSWERS + 1),
}


@pytest.mark.parametrize("wire", REFUSED.values(), ids=REFUSED.keys())
def test_heads_that_can_be_read_in_two_ways_or_none_are_refused(wire: bytes) -> None:
    for pieces in ([wire], *in_two(wire), [bytes([byte]) for byte in wire]):
        status, body, complete, _, failure = told(pieces, ends=False)
        assert failure.startswith("BadReply: ") and (status, body, complete) == (0, b"", False), pieces


BROKEN = {
    "no number": b"oops\r\n",
    "a negative number": b"-5\r\nhello\r\n",
    "a prefix": b"0x5\r\nhello\r\n",
    "an underscore": b"1_0\r\n0123456789abcdef\r\n",
    "a blank": b" 5\r\nhello\r\n",
    "nothing": b"\r\nhello\r\n",
    "a number without end": b"f" * 17 + b"\r\n",
    "a line that ends in LF": b"5\nhello\r\n",
    "a line that ends in CR": b"5\rhello\r\n",
    "data that is longer": b"5\r\nhello!\r\n",
    "data that ends in LF": b"5\r\nhello\n0\r\n\r\n",
    "a trailer that is none": b"5\r\nhello\r\n0\r\nno trailer\r\n\r\n",
}


@pytest.mark.parametrize("rest", BROKEN.values(), ids=BROKEN.keys())
def test_what_came_before_broken_chunks_is_kept(rest: bytes) -> None:
    wire = CHUNKED + b"4\r\nsome\r\n" + rest
    for pieces in ([wire], *in_two(wire), [bytes([byte]) for byte in wire]):
        status, body, complete, _, failure = told(pieces, ends=False)
        assert (status, complete) == (200, False) and body in (b"some", b"somehello")
        assert failure.startswith("Disconnected: the answer's chunks are broken"), pieces
        assert "hello" not in failure


@pytest.mark.parametrize("wire", [LENGTH + b"hello", CHUNKED + b"5\r\nhello\r\n0\r\n\r\n"], ids=["length", "chunks"])
@pytest.mark.parametrize("more", [b"x", LENGTH + b"again"], ids=["a byte", "another answer"])
def test_what_is_behind_an_answer_is_not_read_and_its_connection_not_used_again(wire: bytes, more: bytes) -> None:
    for pieces in ([wire + more], [wire, more], *in_two(wire + more), [bytes([byte]) for byte in wire + more]):
        assert told(pieces, ends=False) == (200, b"hello", True, False, ""), pieces
    assert told([wire + more], ends=True) == (200, b"hello", True, False, "")


def test_a_large_head_is_taken_and_a_larger_one_refused() -> None:
    for size, lines, well in (
        (9_000, 20, True),
        (1000, 30, True),
        (65_000, 3, True),
        (65_600, 3, False),
        (10, 300, False),
    ):
        field = b"x: " + b"y" * max(0, size // lines - 5) + b"\r\n"
        wire = b"HTTP/1.1 200 OK\r\n" + field * lines + b"content-length: 0\r\n\r\n"
        for pieces in ([wire], [wire[at : at + 1400] for at in range(0, len(wire), 1400)]):
            assert told(pieces, ends=False)[2] is well, (size, lines)
    assert "more than 4 lines" in str(
        failure_of(Answer(head_lines=4), b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 4 + b"\r\n")
    )
    assert "larger than 64 bytes" in str(failure_of(Answer(head_bytes=64), b"HTTP/1.1 200 OK\r\na: " + b"b" * 64))


def failure_of(answer: Answer, wire: bytes) -> UpstreamError | None:
    try:
        answer.feed(wire)
    except UpstreamError as failure:
        return failure
    return None


def test_endless_trailers_and_extensions_are_refused_and_long_answers_are_not() -> None:
    for start, more in ((b"0\r\n", b"x-trailer: y\r\n"), (b"5;", b"extension;")):
        answer = Answer()
        answer.feed(CHUNKED + start)
        with pytest.raises(Disconnected, match="endless"):
            for _ in range(FRAMING_BYTES):
                answer.feed(more)
    answer = Answer()
    answer.feed(CHUNKED)
    for _ in range(3 * FRAMING_BYTES // 100):
        answer.feed(b"1" + b";x" * 50 + b"\r\na\r\n")
        assert answer.take() == b"a"


def test_held_bytes_are_counted_until_they_are_taken_away() -> None:
    answer = Answer()
    answer.feed(CHUNKED + b"5\r\nhello\r\n")
    assert answer.held >= 5
    assert answer.take() == b"hello" and answer.held == 0 and answer.take() == b""
    answer.feed(b"1\r\na\r\n1\r\nb\r\n")
    assert answer.take() == b"ab", "the chunks' parser goes on adding after pieces were taken away"


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=8), st.data())
def test_any_chunks_split_anywhere_are_put_together_again(chunks: list[bytes], data: st.DataObject) -> None:
    wire = CHUNKED + b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    cuts = sorted(data.draw(st.sets(st.integers(0, len(wire)), max_size=12)))
    pieces = [wire[start:end] for start, end in zip([0, *cuts], [*cuts, len(wire)], strict=True)]
    assert told(pieces, ends=False) == (200, b"".join(chunks), True, True, "")


@given(st.binary(max_size=200), st.booleans())
def test_whatever_comes_is_an_answer_or_a_failure_of_the_target(wire: bytes, chunked: bool) -> None:
    for pieces in ([wire], [(CHUNKED if chunked else b"HTTP/1.1 ") + wire]):
        status, _, complete, _, failure = told(pieces, ends=True)
        assert complete or failure
        assert status or failure


@given(st.lists(st.tuples(st.binary(min_size=1), st.binary()), max_size=5), st.none() | st.integers(0, 10**9))
def test_no_field_of_a_request_becomes_two(headers: list[tuple[bytes, bytes]], length: int | None) -> None:
    start = b"POST / HTTP/1.1\r\nhost: a\r\n"
    if any(byte in name + value for name, value in headers for byte in b"\r\n"):
        with pytest.raises(ValueError, match="line break"):
            request_head(start, headers, length)
        return
    lines = request_head(start, headers, length).split(b"\r\n")
    assert len(lines) == 2 + len(headers) + (length is not None) + 2
    assert (b"content-length: %d" % length in lines) if length is not None else True


def test_a_requests_head() -> None:
    start = b"POST /v1/chat HTTP/1.1\r\nhost: a\r\n"
    assert request_head(start, [(b"a", b"b")], 7) == start + b"a: b\r\ncontent-length: 7\r\n\r\n"
    assert request_head(start, [], None) == start + b"\r\n"


def test_a_bad_head_is_no_broken_connection() -> None:
    with pytest.raises(BadReply):
        Answer().feed(b"nonsense\r\n\r\n")
