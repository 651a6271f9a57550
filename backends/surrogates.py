"""Halves of characters in JSON: `\\ud83d` alone, which some clients write for a text that was cut within an emoji."""

from __future__ import annotations

import json
import re
from typing import Any, Final

MOST_SEARCHED: Final = 64 * 1024
"""Bytes; of a larger body only the byte is told, not the field."""
_WHOLE = re.compile(rb"(?:[^\\]++|\\[^u]|\\u[dD][89abAB]..\\u[dD][c-fC-F]..|\\u(?![dD][89a-fA-F])....)*+", re.DOTALL)
"""Characters, all of which are whole."""
_HALF = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")


_PLAIN = re.compile(r"[\w-]{1,64}", re.ASCII)
"""Keys that are shown."""


def half(text: bytes) -> tuple[str, int] | None:
    """The first half of a character that stands alone, as it is written, and where it is; None: there is none."""
    end = _WHOLE.match(text).end()  # type: ignore[union-attr] # it matches nothing, too
    found = _HALF.match(text, end)
    return None if found is None else (found[0].decode(), end)


def place(raw: bytes) -> tuple[str, ...] | None:
    """The keys and indices that lead to a text that has such a half, or an object with such a key; None: not known."""
    if len(raw) > MOST_SEARCHED:
        return None
    try:
        open: list[tuple[Any, tuple[str, ...]]] = [(json.loads(raw), ())]
    except (ValueError, RecursionError):
        return None
    while open:
        value, path = open.pop()
        if isinstance(value, str) and not _is_whole(value):
            return path
        if isinstance(value, list):
            open += [(each, (*path, f"[{index}]")) for index, each in enumerate(value)]
        elif isinstance(value, dict):
            if not all(map(_is_whole, value)):
                return path
            open += [(each, (*path, f".{name if _PLAIN.fullmatch(name) else '*'}")) for name, each in value.items()]
    return None


def _is_whole(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def told(text: bytes, begins: int | None = 0) -> tuple[str, str | None] | None:
    """What a user is told of a body that has such a half, and which field it is in; None: it has none.

    `text` is the body, or a part of it that begins at this byte; None: nobody knows where.
    """
    found = half(text)
    if found is None:
        return None
    written, at = found
    path = place(text) if begins == 0 else None
    where = "the body" if path is None else "a key" if not path else "".join(path).lstrip(".")
    byte = "" if begins is None else f" at byte {begins + at}"
    return (
        f"{where} has half of a character{byte}: {written} without its other half. Perhaps a text was cut within an "
        "emoji: cut it between characters, and send it again",
        path[0][1:] if path and path[0][0] == "." and path[0] != ".*" else None,
    )
