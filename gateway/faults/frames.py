"""Streams whose frames are odd: some of them broken, some only rarely seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from gateway.faults.answer import Pause, Step

LETTER: Final = "é".encode()


def broken_json(steps: list[Step]) -> list[Step]:
    return [*steps[:2], b'data: {"choices": [{"index": 0,\n\n', *steps[2:]]


def bad_prefix(steps: list[Step]) -> list[Step]:
    """An event whose only line is a field that nobody knows: its word is lost, the frame is not."""
    return [
        *steps[:2],
        *(step.replace(b"data:", b"dta:", 1) for step in steps[2:3] if isinstance(step, bytes)),
        *steps[3:],
    ]


def bad_utf8(steps: list[Step]) -> list[Step]:
    return [*steps[:2], b'data: {"choices": [{"index": 0, "delta": {"content": "\xff\xfe"}}]}\n\n', *steps[2:]]


def split_utf8(steps: list[Step]) -> list[Step]:
    """A letter of two bytes after each word, the second byte in another packet."""
    made: list[Step] = []
    for step in steps:
        if isinstance(step, bytes) and (at := step.find(b'"content":"w')) < 0:
            at = step.find(b'"content":" w')
        if not isinstance(step, bytes) or at < 0:
            made.append(step)
            continue
        at = step.index(b'"', at + 12)
        made += [step[:at] + LETTER[:1], Pause(0.001), LETTER[1:] + step[at:]]
    return made


def byte_order_mark(steps: list[Step]) -> list[Step]:
    return [b"\xef\xbb\xbf", *steps]


def carriage_returns(steps: list[Step]) -> list[Step]:
    return [step.replace(b"\n", b"\r\n") if isinstance(step, bytes) else step for step in steps]


def mixed_ends(steps: list[Step]) -> list[Step]:
    """Each event with another line end, none of them split."""
    ends = (b"\n", b"\r\n", b"\r")
    return [
        step.replace(b"\n", ends[number % 3]) if isinstance(step, bytes) else step for number, step in enumerate(steps)
    ]


def comments(steps: list[Step]) -> list[Step]:
    """A comment before each event, and fields that nobody knows."""
    made: list[Step] = []
    for number, step in enumerate(steps):
        made += [b": keep-alive\n\n", b"id: %d\nretry: 10\n" % number, step]
    return made


KINDS: Final[dict[str, Callable[[list[Step]], list[Step]]]] = {
    "json": broken_json,
    "prefix": bad_prefix,
    "utf8": split_utf8,
    "bad_utf8": bad_utf8,
    "bom": byte_order_mark,
    "crlf": carriage_returns,
    "mixed": mixed_ends,
    "comments": comments,
}
