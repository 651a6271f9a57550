"""The splitter loses no byte and finds the same events however the network cuts the stream."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.sse import Splitter, data, end_of_event

END = st.sampled_from([b"\n", b"\r\n", b"\r"])
LINE = st.binary(max_size=12).map(lambda raw: raw.replace(b"\r", b"").replace(b"\n", b""))
FIELD = st.sampled_from([b"data: ", b"data:", b": ", b"event: ", b"id:", b"", b"data"])


@st.composite
def streams(draw: st.DrawFn, end: st.SearchStrategy[bytes] = END) -> bytes:
    """Lines, comments and empty lines with any mix of line ends."""
    lines = draw(st.lists(st.tuples(FIELD, LINE, end) | st.tuples(st.just(b""), st.just(b""), end), max_size=12))
    return b"".join(b"".join(line) for line in lines)


@st.composite
def blocks(draw: st.DrawFn, stream: bytes) -> list[bytes]:
    cuts = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    return [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]


def split(pieces: list[bytes]) -> tuple[list[bytes], bytes]:
    splitter = Splitter()
    return [event for piece in pieces for event in splitter.feed(piece)], splitter.rest


@given(streams(), st.data())
def test_any_cut_gives_the_same_events_and_every_byte(stream: bytes, drawn: st.DataObject) -> None:
    events, rest = split(drawn.draw(blocks(stream)))
    whole, whole_rest = split([stream])
    assert b"".join(events) + rest == stream
    assert (events, rest) == (whole, whole_rest)


@given(streams())
def test_byte_by_byte_is_the_same(stream: bytes) -> None:
    assert split([stream[i : i + 1] for i in range(len(stream))]) == split([stream])


@given(st.lists(st.lists(LINE.filter(bool), min_size=1, max_size=3), max_size=5), st.data())
def test_each_event_ends_with_its_empty_line(events: list[list[bytes]], drawn: st.DataObject) -> None:
    """A stream that ends its lines with "\\n" or "\\r\\n", whichever it likes at the moment."""
    mixed = st.sampled_from([b"\n", b"\r\n"])
    written = [b"".join(line + drawn.draw(mixed) for line in event) + drawn.draw(mixed) for event in events]
    assert split(drawn.draw(blocks(b"".join(written)))) == (written, b"")


@given(st.lists(st.lists(LINE.filter(bool), min_size=1, max_size=3), min_size=1, max_size=4))
def test_lone_carriage_returns_end_lines_too(events: list[list[bytes]]) -> None:
    written = [b"".join(line + b"\r" for line in event) + b"\r" for event in events]
    splitter = Splitter()
    found = splitter.feed(b"".join(written))
    assert [*found, splitter.close()] == written  # only the end tells that the last is not half a "\r\n"
    assert not splitter.rest


@pytest.mark.parametrize(
    ("pieces", "events"),
    [
        ([b"data: a\n\ndata: b\n\n"], [b"data: a\n\n", b"data: b\n\n"]),
        ([b"data: a\r", b"\n\r", b"\ndata: b\r\n\r\n"], [b"data: a\r\n\r\n", b"data: b\r\n\r\n"]),
        ([b"data: a\n", b"\n"], [b"data: a\n\n"]),
        ([b"data: a\n\n\ndata: b\n\n"], [b"data: a\n\n", b"\ndata: b\n\n"]),
        ([b"data: a\n\n\n"], [b"data: a\n\n"]),
        ([b"data: a\n\n\n", b"\n"], [b"data: a\n\n", b"\n\n"]),
        ([b":\n\n", b": ping\r\n\r\n"], [b":\n\n", b": ping\r\n\r\n"]),
        ([b"data: a\r\n\n", b"data: b\n\r\n"], [b"data: a\r\n\n", b"data: b\n\r\n"]),
        ([b"data: a\r\rdata: b"], [b"data: a\r\r"]),
        ([b"", b"data: a\n\n", b""], [b"data: a\n\n"]),
    ],
)
def test_events_of_known_streams(pieces: list[bytes], events: list[bytes]) -> None:
    assert split(pieces)[0] == events


@given(streams(), st.data())
def test_the_end_of_a_stream_adds_no_byte(stream: bytes, drawn: st.DataObject) -> None:
    splitter = Splitter()
    events = [event for block in drawn.draw(blocks(stream)) for event in splitter.feed(block)]
    assert b"".join([*events, splitter.close()]) + splitter.rest == stream


@pytest.mark.parametrize("unfinished", [b"data: a", b"data: a\n", b"data: a\r", b"data: a\r\n", b"\r", b""])
def test_an_event_cut_off_is_none(unfinished: bytes) -> None:
    splitter = Splitter()
    assert (splitter.feed(unfinished), splitter.close()) == ([], b"")
    assert splitter.rest == unfinished


@given(streams(), st.data())
def test_whole_events_that_came_together_are_cut_as_they_are_alone(stream: bytes, drawn: st.DataObject) -> None:
    splitter, found = Splitter(), []
    for block in drawn.draw(blocks(stream)):
        whole, start = splitter.take(block), 0
        while start < len(whole):
            end = end_of_event(whole, start)
            found.append(whole[start:end])
            start = end
    assert (found, splitter.rest) == split([stream])


def test_a_large_event_costs_each_of_its_bytes_once() -> None:
    """Its pieces are not put together anew with each that comes: that would be 8 GB here."""
    splitter, piece = Splitter(), b"x" * 16384
    for number in range(1, 1001):
        assert splitter.take(piece) == b""
        assert len(splitter.rest) == number * len(piece)
    assert len(splitter.take(b"\n\n")) == 1000 * len(piece) + 2


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (b"data: x\n\n", b"x"),
        (b"data:x\n\n", b"x"),
        (b"data: x\r\n\r\n", b"x"),
        (b"data: x\r\r", b"x"),
        (b"data: x\r\n\n", b"x"),
        (b"data: x\n\r\n", b"x"),
        (b"data: a\ndata: b\n\n", b"a\nb"),
        (b"data: a\r\ndata:b\r\n\r\n", b"a\nb"),
        (b"event: e\nid: 1\ndata: x\nretry: 3\n\n", b"x"),
        (b": comment\ndata: x\n\n", b"x"),
        (b": data: x\n\n", b""),
        (b":\n\n", b""),
        (b"event: ping\n\n", b""),
        (b"database: x\n\n", b""),
        (b"\n\n", b""),
        (b"data: [DONE]\n\n", b"[DONE]"),
        (b'data: {"a": "data: b"}\n\n', b'{"a": "data: b"}'),
        ('data: {"a": "\u2028\u0085"}\n\n'.encode(), '{"a": "\u2028\u0085"}'.encode()),
    ],
)
def test_data_of_an_event(event: bytes, expected: bytes) -> None:
    assert data(event) == expected
