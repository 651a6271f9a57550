"""Incremental splitter of server-sent events: blocks of bytes in, whole events out, every byte kept."""

from __future__ import annotations

import re

# An empty line in any of the three spellings of a line end. "\r\n" is one line end, hence the look-ahead.
_BLANK = re.compile(rb"(?:\r\n|\n|\r(?!\n)){2}")


class Splitter:
    """Cuts one stream where events end; each event keeps its closing empty line, comments and all."""

    __slots__ = ("rest",)

    def __init__(self) -> None:
        self.rest = bytearray()
        """What has arrived of an event that is not complete yet."""

    def take(self, block: bytes) -> bytes:
        """The events that `block` completes, all together."""
        rest = self.rest
        if not rest:
            if block.endswith(b"\n\n") and not block.endswith(b"\n\n\n") and b"\r" not in block:
                return block  # nearly always
            end = _last_end(block, 0)
            if end == len(block):
                return block
            rest += block
        else:
            new = max(0, len(rest) - 3)  # before it there is no empty line
            rest += block
            end = _last_end(rest, new)
        whole = bytes(rest[:end])
        del rest[:end]
        return whole

    def feed(self, block: bytes) -> list[bytes]:
        """The events that `block` completes."""
        return cut(self.take(block))

    def close(self) -> bytes:
        """The last event, if only the end of the stream told that its closing line was complete."""
        if not self.rest.endswith(b"\r") or not _BLANK.search(self.rest):
            return b""
        last, self.rest = bytes(self.rest), bytearray()
        return last


def cut(whole: bytes) -> list[bytes]:
    """The events of what `Splitter.take` gave."""
    if b"\r" not in whole:
        return [event + b"\n\n" for event in whole.split(b"\n\n")[:-1]]
    events, start = [], 0
    for match in _BLANK.finditer(whole):
        events.append(whole[start : match.end()])
        start = match.end()
    return events


def end_of_event(whole: bytes, start: int) -> int:
    """Where the event ends that begins at `start` of what `Splitter.take` gave, whatever ends its lines."""
    match = _BLANK.search(whole, start)
    return len(whole) if match is None else match.end()


def data(event: bytes) -> bytes:
    """The event's data, its lines joined; empty for comments and other fields alone."""
    if event.startswith(b"data: ") and event.find(b"\n") == len(event) - 2 and b"\r" not in event:
        return event[6:-2].strip()
    lines = [line[5:].removeprefix(b" ") for line in event.splitlines() if line.startswith(b"data:")]
    return b"\n".join(lines).strip()


def _last_end(text: bytes | bytearray, new: int) -> int:
    """Where the last whole event of `text` ends; 0: there is none. Before `new` there is no empty line."""
    if text.find(b"\r", new) < 0:
        end = text.rfind(b"\n\n", new) + 2
        if end == 1:  # not found
            return 0
        if end > 2 and text[end - 3] == 10:  # several empty lines: what is left of them in pairs begins the next event
            run = end - len(text[:end].rstrip(b"\n"))
            end -= run % 2
        return end
    end = 0
    for match in _BLANK.finditer(text, new):
        if match.end() == len(text) and text.endswith(b"\r"):
            break  # the "\n" of this line end may be in the next block
        end = match.end()
    return end
