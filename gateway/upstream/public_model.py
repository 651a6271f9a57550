"""Answers that name the model as their clients did, and not as the target calls it (`public_model` of a route)."""

from __future__ import annotations

import re
from typing import Final

import msgspec
from msgspec import Raw, Struct, structs

from backends import answers, sse
from backends.api import Chunk
from gateway.upstream.exchange import Exchange


class _Named(Struct):
    """Where an answer, or an event, names its model; some have it one level deeper."""

    model: Raw = Raw()
    response: Raw = Raw()
    message: Raw = Raw()


_named: Final = msgspec.json.Decoder(_Named)
_EVENTS: Final = (b"data:", b"event:", b"id:", b"retry:", b":")


class RenamedExchange(Exchange):
    """An exchange whose answer has another name of the model in it."""

    __slots__ = ("_new", "_old")

    def rename(self, public: str) -> RenamedExchange:
        """Put this name into the answer; the exchange itself."""
        self._new = b"\\1" + msgspec.json.encode(public).replace(b"\\", b"\\\\")
        self._old: re.Pattern[bytes] | None = None
        """What the answer calls its model, once it has said so."""
        return self

    async def next(self) -> Chunk:
        """As the exchange's."""
        chunk = await super().next()
        if not chunk.data:
            return chunk
        if self._old is None and (name := _name(chunk.data)) is not None:
            # Quotes that are not escaped: it stands in no text.
            self._old = re.compile(rb'("model"\s*:\s*)' + re.escape(name))
        return chunk if self._old is None else structs.replace(chunk, data=self._old.sub(self._new, chunk.data))


def _name(data: bytes) -> bytes | None:
    """The name of the model in an answer, or in the first of its events that has one, as JSON."""
    parts = map(sse.data, sse.cut(data)) if data.startswith(_EVENTS) else [data]
    for part in parts:
        try:
            seen = answers.decoded(_named, part)
            inner = next((raw for raw in (seen.response, seen.message) if bytes(memoryview(raw)[:1]) == b"{"), None)
            name = bytes(seen.model or (b"" if inner is None else answers.decoded(_named, inner).model))
        except (ValueError, RecursionError):
            continue
        if name.startswith(b'"'):
            return name
    return None
