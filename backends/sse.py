"""Incremental splitter of server-sent events: blocks of bytes in, whole events out, every byte kept."""

from __future__ import annotations

import re

MAX_EVENT = 1024 * 1024
"""Bytes. No engine sends a larger event; a server that never ends a line must not fill our memory."""

# An empty line in any of the three spellings of a line end. "\r\n" is one line end, hence the look-ahead.
_BLANK = re.compile(rb"(?:\r\n|\n|\r(?!\n)){2}")


class EventTooLarge(ValueError):
    """An event grew beyond `MAX_EVENT` bytes."""


class Splitter:
    """Cuts one stream into events; each is returned with its closing empty line, comments and all."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, block: bytes) -> list[bytes]:
        """The events that `block` completes. Raises `EventTooLarge`."""
        text = self._rest + block if self._rest else block
        events = _split_lf(text) if b"\r" not in text else _split_any(text, max(0, len(self._rest) - 3))
        self._rest = events.pop()
        if len(text) > MAX_EVENT and max(map(len, (*events, self._rest))) > MAX_EVENT:
            raise EventTooLarge(f"an event is longer than {MAX_EVENT} bytes")
        return events

    def close(self) -> list[bytes]:
        """The last event, if only the end of the stream told that its closing line was complete."""
        if not self._rest.endswith(b"\r") or not _BLANK.search(self._rest):
            return []
        last, self._rest = self._rest, b""
        return [last]

    @property
    def rest(self) -> bytes:
        """What has arrived of an event that is not complete yet."""
        return self._rest


def _split_lf(text: bytes) -> list[bytes]:
    *events, rest = text.split(b"\n\n")
    return [event + b"\n\n" for event in events] + [rest]


def _split_any(text: bytes, new: int) -> list[bytes]:
    """`new`: where to begin to look; before it there is no empty line."""
    events, start = [], 0
    for match in _BLANK.finditer(text, new):
        if match.end() == len(text) and text.endswith(b"\r"):
            break  # the "\n" of this line end may be in the next block
        events.append(text[start : match.end()])
        start = match.end()
    return [*events, text[start:]]


def data(event: bytes) -> bytes:
    """The event's data, its lines joined; empty for comments and other fields alone."""
    if event.startswith(b"data: ") and event.find(b"\n") == len(event) - 2 and b"\r" not in event:
        return event[6:-2].strip()
    lines = [line[5:].removeprefix(b" ") for line in event.splitlines() if line.startswith(b"data:")]
    return b"\n".join(lines).strip()
