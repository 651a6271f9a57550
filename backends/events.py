"""Reads the events of one stream in OpenAI's language, most of them without looking into their JSON.

Nearly all events of a stream are one event over and over, with another piece of text in it. So what surrounds the text
of an event that was read is kept as a mould: what comes next and fits it holds another string in the same place, is
JSON as the first one was, and tells no more than that one.
"""

from __future__ import annotations

import re
from typing import Final, Protocol

import msgspec

from backends import answers, sse
from backends.api import Call, Chunk, Usage
from backends.continuous import Tally, without_usage

_TEXT = re.compile(rb'"(?:content|text|reasoning_content|reasoning|arguments)":[ ]?"(?!")')
"""Where a string begins that differs from event to event. In valid JSON this is never inside a string: there the second
of these quotes would end it."""
TEXTS: Final = re.compile(rb'"(?:content|text|reasoning_content|reasoning|arguments)":\s?"([^"\\]*+(?:\\.[^"\\]*+)*+)"')
"""The pieces of text in an event."""
_STRING = re.compile(rb'[^"\\\x00-\x1f]*+(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*+)*+')
"""The inside of a JSON string."""
MOST_MISSES: Final = 8
"""So many moulds in a row that fitted nothing: the stream's events differ in more than one place."""
_STANDARD: Final = frozenset({"id", "object", "created", "model", "choices", "usage", "error"})


class Reads(Protocol):
    """The adapter's part: one event, without what came before it."""

    def chunk(self, call: Call, event: bytes) -> tuple[Chunk, ...]:
        """As `Adapter.chunk`: each event is one chunk."""


class Events:
    """One stream's events.

    Where usage was asked for by us alone, the client does not get the event that tells it; what the server says there
    beside it (vLLM its fingerprint, llama.cpp its timings) is put onto the event that ends the answer, which waits for
    it: the usage event follows at once.
    """

    __slots__ = (
        "_adapter",
        "_after",
        "_before",
        "_finished",
        "_fixed",
        "_held",
        "_hides",
        "_misses",
        "_tally",
        "_waits",
    )

    def __init__(self, adapter: Reads, call: Call, *, hides: bool = False) -> None:
        """`hides`: usage beside choices was asked for by us alone, and is not shown to the client."""
        self._adapter, self._hides = adapter, hides
        self._tally: Tally | None = None
        self._before = self._after = b""
        """The mould."""
        self._fixed = 0
        """Bytes of text in the mould itself."""
        self._misses = 0
        self._waits = 0 if call.include_usage else call.choices
        """So many choices end before the usage event comes."""
        self._finished = 0
        self._held: Chunk | None = None

    def skim(self, data: bytes, start: int) -> tuple[int, int, int]:
        """Where those events of `data`, from `start` on, end that are one more piece of output each, how many they are,
        and the bytes of their text."""
        before, after, count, begun = self._before, self._after, 0, start
        if not before or self._held is not None:
            return start, 0, 0
        length, rest, inside = len(before), len(after), _STRING.match
        while data.startswith(before, start):
            text = inside(data, start + length)
            end = text.end()  # type: ignore[union-attr] # it matches nothing, too
            if not data.startswith(after, end):
                break
            start = end + rest
            count += 1
        if count:
            self._misses = 0
        return start, count, start - begun - count * (length + rest - self._fixed)

    def chunk(self, call: Call, event: bytes) -> tuple[Chunk, ...]:
        """Read one event."""
        held, (chunk,) = self._held, self._adapter.chunk(call, event)
        if chunk.usage is not None and (chunk.tokens or chunk.opening):
            chunk = self._told_beside(call, chunk, chunk.usage)
        if held is not None:
            self._held = None
            return (held if chunk.data else _joined(held, event), chunk)
        if chunk.finished:
            self._finished += chunk.finished
            if self._finished == self._waits:
                self._held = chunk
                return () if chunk.usage is None else (Chunk(b"", usage=chunk.usage),)
        elif chunk.tokens == 1 and not chunk.choice and chunk.usage is None and self._misses < MOST_MISSES:
            self._mould(event, chunk.text)
        return (chunk,)

    def close(self) -> tuple[Chunk, ...]:
        """The end of an answer whose usage never came."""
        held, self._held = self._held, None
        return () if held is None else (held,)

    def _told_beside(self, call: Call, chunk: Chunk, usage: Usage) -> Chunk:
        """An event that tells of choices and, beside them, of usage: that of its choice alone, in what is known of
        servers that tell it in every event."""
        if call.choices > 1:
            self._tally = self._tally or Tally()
            usage = Usage(*self._tally.add(call, chunk.choice, usage))
        return msgspec.structs.replace(
            chunk, data=without_usage(chunk.data) if self._hides else chunk.data, usage=usage
        )

    def _mould(self, event: bytes, size: int) -> None:
        """Keep what surrounds the text of an event, which tells of one piece of output and of nothing else; of all
        texts in it there are `size` bytes."""
        text = _TEXT.search(event)
        if text is None or b'"role"' in event or b"\r" in event:  # one of a role may say nothing with an empty text
            return
        self._misses += 1
        if self._misses == MOST_MISSES:
            self._before = b""
            return
        end = _STRING.match(event, text.end()).end()  # type: ignore[union-attr] # it matches nothing, too
        self._before, self._after = event[: text.end()], event[end:]
        self._fixed = size - (end - text.end())


def _joined(held: Chunk, event: bytes) -> Chunk:
    """The event that ends an answer, with what the usage event told beside the usage."""
    try:
        known, told = answers.members(sse.data(held.data)), answers.members(sse.data(event))
    except (ValueError, RecursionError):
        return held
    added = [
        b"," + msgspec.json.encode(name) + b":" + value
        for name, value in told.items()
        if name not in _STANDARD and name not in known and value != b"null"
    ]
    if not added:
        return held
    end = held.data.rindex(b"}")
    return msgspec.structs.replace(held, data=held.data[:end] + b"".join(added) + held.data[end:])
