"""What surrounds the text of events that are one event over and over, with another piece of text in it.

The reader of the server's language knows such events (`backends.events`); who translates them takes the text out.
"""

from __future__ import annotations

import re
from typing import Any, Final

from backends.api import StreamReader

_TEXT: Final = re.compile(rb'"(?:content|text|reasoning_content|reasoning|arguments)":[ ]?"')

_STRING: Final = re.compile(rb'[^"\\\x00-\x1f]*+(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*+)*+')
"""The inside of a JSON string."""


class Mould:
    """The mould of one stream."""

    def __init__(self, reader: StreamReader) -> None:
        """Of a reader that cannot skim, no event is known before it is read."""
        self._skim: Any = getattr(reader, "skim", None)
        self._before = self._after = b""

    def text(self, event: bytes) -> bytes | None:
        """The inside of the text of an event that tells nothing else and fits, and need not be read.

        None: read it. Then the mould is broken, for what comes after it is not like what came before. An empty text is
        read, too: it may mean something else.
        """
        before, after, self._before = self._before, self._after, b""
        if before and event.startswith(before) and event.endswith(after):
            text = event[len(before) : len(event) - len(after)]
            if text and _STRING.fullmatch(text) is not None and self._fits(event):
                self._before = before
                return text
        return None

    def _fits(self, event: bytes) -> bool:
        """Whether the reader of the server's language knows it, too."""
        end, count, _ = self._skim(event, 0)
        return bool(count == 1 and end == len(event))

    def keep(self, event: bytes, inside: bytes) -> None:
        """Make the mould of an event that was read, and tells nothing but a text of this inside."""
        if self._skim is None:
            return
        for match in _TEXT.finditer(event):
            end = match.end() + len(inside)
            if event.startswith(inside, match.end()) and event.startswith(b'"', end):
                self._before, self._after = event[: match.end()], event[end:]
                return
