"""The splitter of event streams, beside a reader that goes from line end to line end."""

from __future__ import annotations

import random
from zlib import crc32

from fuzz.feeding import Harness

from backends import sse
from backends.samples import OPENAI


def check(data: bytes) -> None:
    """However it is cut, the same events, and every byte of them."""
    events, rest, last = _by_lines(data)
    for pieces in _cuts(data):
        splitter = sse.Splitter()
        found = [event for piece in pieces for event in splitter.feed(piece)]
        assert (found, splitter.rest) == (events, rest)
        assert (splitter.close(), splitter.rest) == ((rest, b"") if last else (b"", rest))
    for event in events:
        assert sse.data(event) == _data(event), event


def _cuts(data: bytes) -> list[list[bytes]]:
    """The stream whole, byte by byte, and in pieces of which its own checksum decides."""
    chance, pieces, at = random.Random(crc32(data)), [], 0
    while at < len(data):
        size = chance.choice((1, 1, 2, 3, 7, 40, 300))
        pieces.append(data[at : at + size])
        at += size
    singly = [data[at : at + 1] for at in range(len(data))] if len(data) < 3000 else pieces
    return [[data], singly, [b"", *pieces, b""]]


def _by_lines(data: bytes) -> tuple[list[bytes], bytes, bool]:
    """Events, the rest, and whether the rest is an event if nothing follows."""
    events: list[bytes] = []
    start = at = ends = 0
    while at < len(data):
        size = 2 if data[at : at + 2] == b"\r\n" else 1
        ends = ends + 1 if data[at : at + 1] in (b"\r", b"\n") else 0
        at += size
        if ends == 2:
            if data[at - 1 : at] == b"\r" and at == len(data):
                return events, data[start:], True
            events.append(data[start:at])
            start, ends = at, 0
    return events, data[start:], False


def _data(event: bytes) -> bytes:
    """As the standard has it, but for a field name alone and for white space around it all."""
    lines = event.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    values = [line.partition(b":")[2] for line in lines if line.startswith(b"data:")]
    return b"\n".join(value[1:] if value.startswith(b" ") else value for value in values).strip()


HARNESS = Harness("sse", check, tuple(sample.answered for sample in OPENAI))
