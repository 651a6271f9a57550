"""A JSON request body whose top-level fields can be read and replaced without touching any other byte."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec
from msgspec import Raw, Struct

T = TypeVar("T")

SMALL = 64 * 1024
"""Bytes. A body of this size has at most about ten thousand keys, which decode in milliseconds."""
MAX_KEYS = 16_384
"""Top-level keys of a larger body. A million of them would hold the event loop for a second."""

_KEY = re.compile(rb'[ \t\r\n]*("(?:[^"\\]|\\.)*")[ \t\r\n]*:[ \t\r\n]*')
_NEXT = re.compile(rb"[ \t\r\n]*([,}])")
_OPEN = re.compile(rb"[ \t\r\n]*\{")
_scanner = json.JSONDecoder()  # tells where a value ends, which msgspec does not
_fields = msgspec.json.Decoder(dict[str, Raw])


class _Bulk(Struct):
    """The fields that may rightly be large; decoding them alone skips all others without allocating."""

    messages: Raw = Raw()
    prompt: Raw = Raw()
    input: Raw = Raw()
    tools: Raw = Raw()
    functions: Raw = Raw()
    documents: Raw = Raw()
    response_format: Raw = Raw()
    guided_json: Raw = Raw()
    structured_outputs: Raw = Raw()


_bulk = msgspec.json.Decoder(_Bulk)


class Malformed(ValueError):
    """The body is not a JSON object the gateway can route; the message says why, `param` which field."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class Body:
    """A request body as received, and its top-level fields as undecoded JSON.

    Raises `Malformed` for anything but one JSON object in UTF-8 without repeated top-level keys: two readers of
    a repeated key may each believe another value, so the gateway could allow one model and the target serve another.
    """

    __slots__ = ("_spans", "fields", "raw")

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        try:
            raw.decode()  # msgspec does not look into strings that it skips
            if len(raw) > SMALL:
                _refuse_key_flood(raw)
            self.fields: dict[str, Raw] = _fields.decode(raw)
        except UnicodeDecodeError as error:
            raise Malformed(f"the body is not UTF-8: invalid byte at position {error.start}") from None
        except RecursionError:
            raise Malformed("the body is nested too deeply") from None
        except msgspec.DecodeError as error:
            raise Malformed(f"the body is not a JSON object: {error}") from None
        self._spans = self._locate()

    def get(self, name: str, type: type[T], default: T) -> T:
        """The field's value; `default` when it is absent or null; `Malformed` when it is of another type."""
        raw = self.fields.get(name)
        if raw is None or bytes(raw) == b"null":
            return default
        try:
            return msgspec.json.decode(raw, type=type)
        except msgspec.ValidationError as error:
            raise Malformed(f"{name}: {error}", name) from None

    def decoded(self) -> dict[str, Any]:
        """The whole body as Python values, for adapters whose language is not OpenAI's."""
        try:
            return {name: msgspec.json.decode(raw) for name, raw in self.fields.items()}
        except RecursionError:
            raise Malformed("the body is nested too deeply") from None
        except msgspec.DecodeError as error:
            raise Malformed(f"the body cannot be read: {error}") from None

    def spliced(self, changes: Mapping[str, bytes]) -> bytes:
        """The body with these fields set to the given JSON, every other byte as it was."""
        pieces, copied = [], 0
        for name, (start, end) in zip(self.fields, self._spans, strict=True):
            if name in changes:
                pieces += [self.raw[copied:start], changes[name]]
                copied = end
        if added := [(name, value) for name, value in changes.items() if name not in self.fields]:
            last = self._spans[-1][1] if self._spans else self.raw.index(b"{") + 1
            pieces.append(self.raw[copied:last])
            text = b",".join(msgspec.json.encode(name) + b":" + value for name, value in added)
            pieces.append(b"," + text if self._spans else text)
            copied = last
        pieces.append(self.raw[copied:])
        return b"".join(pieces)

    def _locate(self) -> list[tuple[int, int]]:
        """Where each field's value stands, in order.

        The decoded fields are what each key's *last* value was, in the order of first appearance. So walking the raw
        bytes along them arrives at the closing brace if, and only if, no key came twice.
        """
        raw, spans = self.raw, []
        match = _OPEN.match(raw)
        position = match.end() if match else 0
        separator = b","
        for value in map(bytes, self.fields.values()):
            key = _KEY.match(raw, position)
            if separator != b"," or key is None or not raw.startswith(value, key.end()):
                raise Malformed("the body has a top-level key more than once")
            start, end = key.end(), key.end() + len(value)
            after = _NEXT.match(raw, end)
            if after is None:
                raise Malformed("the body has a top-level key more than once")
            spans.append((start, end))
            position, separator = after.end(), after[1]
        if spans and separator != b"}":
            raise Malformed("the body has a top-level key more than once")
        return spans


def _refuse_key_flood(raw: bytes) -> None:
    """Refuse a body with too many top-level keys before each of them is allocated."""
    bulk = _bulk.decode(raw)
    large = [value for name in bulk.__struct_fields__ if (value := bytes(getattr(bulk, name)))]
    if len(raw) - sum(map(len, large)) <= SMALL:
        return
    if raw.count(b":") - sum(value.count(b":") for value in large) <= MAX_KEYS:
        return
    # Many keys, or one unknown field with many of its own: only reading on from key to key tells.
    text, position, separator, keys = raw.decode("latin-1"), raw.index(b"{") + 1, b",", 0
    while separator == b"," and (key := _KEY.match(raw, position)) is not None:
        keys += 1
        if keys > MAX_KEYS:
            raise Malformed(f"the body has more than {MAX_KEYS} keys")
        _, end = _scanner.raw_decode(text, key.end())
        after = _NEXT.match(raw, end)
        if after is None:
            return
        position, separator = after.end(), after[1]
