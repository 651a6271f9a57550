"""A JSON request body whose top-level fields can be read and replaced without touching any other byte."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Raw

from backends import surrogates

T = TypeVar("T")

SMALL: Final = 32 * 1024
"""Bytes. A body of this size has at most about five thousand keys, which decode in less than a millisecond."""
MAX_KEYS: Final = 1_000
"""Top-level keys of a larger body. No API has a tenth of them, and a million would hold the event loop for a second."""

_MEMBER = re.compile(rb'[ \t\r\n{,]*"[^"\\]*(?:\\.[^"\\]*)*"[ \t\r\n]*:[ \t\r\n]*')


class Malformed(ValueError):
    """The body is not a JSON object the gateway can route; the message says why, `param` which field."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class _Key(str):
    """A key that equals no other, so that a dict holds those that came twice, too.

    What decides it are slots of `object`, which cost no frame.
    """

    __slots__ = ()
    __eq__ = object.__eq__
    __hash__ = object.__hash__


class _TooManyKeys(Exception):
    """Raised while decoding; msgspec would take a ValueError for one of its own."""


_fields = msgspec.json.Decoder(dict[str, Raw])
_members = msgspec.json.Decoder(dict[_Key, Raw], dec_hook=str.__new__)


class Body:
    """A request body as received, and its top-level fields as undecoded JSON.

    Raises `Malformed` for anything but one JSON object in UTF-8 without repeated top-level keys: two readers of
    a repeated key may each believe another value, so the gateway could allow one model and the target serve another.
    """

    __slots__ = ("_spans", "fields", "raw")
    rest: Any = None
    """What gives that of it which has not come yet; None: all has."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self._spans: dict[str, tuple[int, int]] | None = None
        try:
            plain = raw.isascii()
            if not plain:
                raw.decode()  # msgspec does not look into strings that it skips
            # Of each key there are two quotes: so many cannot be too many keys.
            few = len(raw) <= SMALL or raw.count(b'"') <= 2 * MAX_KEYS
            fields = _fields.decode(raw) if few else {}
            size = 1 + len(fields) * 4 + sum(map(len, fields)) + sum(map(len, fields.values()))
            if plain and size == len(raw) and fields:
                # So long is a body that is written without a blank or an escape in a key, and says nothing twice.
                self.fields: dict[str, Raw] = fields
                return
            members = _members.decode(raw) if few else _bounded(raw)
        except UnicodeDecodeError as error:
            raise Malformed(f"the body is not UTF-8: invalid byte at position {error.start}") from None
        except RecursionError:
            raise Malformed("the body is nested too deeply") from None
        except _TooManyKeys:
            raise too_many_keys() from None
        except msgspec.DecodeError as error:
            if (half := surrogates.told(self.raw)) is not None:
                raise Malformed(*half) from None
            raise Malformed(f"the body is not a JSON object: {error}") from None
        self.fields = dict(zip(map(str, members), members.values(), strict=True))
        if len(self.fields) != len(members):
            raise Malformed("the body has a top-level key more than once")

    @property
    def spent(self) -> bool:
        """A part of it is gone: it cannot be sent once more."""
        return False

    @classmethod
    def known(cls, raw: bytes, spans: dict[str, tuple[int, int]]) -> Body:
        """A body that was read already: where the value of each of its fields begins and ends."""
        body, view = cls.__new__(cls), memoryview(raw)
        body.raw, body._spans = raw, spans
        body.fields = {name: Raw(view[start:end]) for name, (start, end) in spans.items()}
        return body

    def spans(self) -> dict[str, tuple[int, int]]:
        """Where the value of each field begins and ends."""
        if self._spans is None:
            self._spans, position = {}, 0
            for name, value in self.fields.items():  # keys are unique, so the lengths lead from one to the next
                member = _MEMBER.match(self.raw, position)
                assert member is not None
                position = member.end() + len(value)
                self._spans[name] = member.end(), position
        return self._spans

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

    def changed(self, changes: Mapping[str, bytes | None]) -> Body:
        """A body with these fields set to the given JSON, or taken out where that is None; the others as they were."""
        view, spans = memoryview(self.raw), dict[str, tuple[int, int]]()
        copied = length = self.raw.find(b"{") + 1
        pieces: list[bytes | memoryview] = [view[:copied]]

        def add(name: str, before: bytes | memoryview, value: bytes | memoryview) -> None:
            nonlocal length
            start = length + len(before)
            length = start + len(value)
            spans[name] = start, length
            pieces.extend((before, value))

        for name, (start, end) in self.spans().items():
            before, copied = bytes(view[copied:start]), end
            value = changes.get(name, view[start:end])
            if value is not None:
                if not spans and (bare := before.lstrip(b" \t\r\n")).startswith(b","):
                    before = bare[1:]  # those before it were taken out
                add(name, before, value)
        for name, new in changes.items():
            if name not in self.fields and new is not None:
                add(name, b"," * bool(spans) + msgspec.json.encode(name) + b":", new)
        return Body.known(b"".join([*pieces, view[copied:]]), spans)

    def spliced(self, changes: Mapping[str, bytes]) -> bytes:
        """The body with these fields set to the given JSON, every other byte as it was."""
        view, fields, spans = memoryview(self.raw), self.fields, self.spans() if changes else {}
        pieces: list[bytes | memoryview] = []
        copied = 0
        for name in [name for name in fields if name in changes]:
            start, end = spans[name]
            pieces += (view[copied:start], changes[name])
            copied = end
        # Behind the last value, or behind the opening brace.
        last, comma = (spans[next(reversed(fields))][1], b",") if fields and changes else (self.raw.find(b"{") + 1, b"")
        for name, new in changes.items():
            if name not in fields:
                pieces += (view[copied:last], comma, msgspec.json.encode(name), b":", new)
                copied, comma = last, b","
        pieces.append(view[copied:])
        return b"".join(pieces)


def too_many_keys() -> Malformed:
    """What is said of a body with more than `MAX_KEYS`."""
    return Malformed(f"the body has more than {MAX_KEYS} top-level keys")


def _bounded(raw: bytes) -> dict[_Key, Raw]:
    """The members of a body in which there may be too many: it stops at the first that is."""
    keys = 0

    def counted(kind: type[_Key], key: str) -> _Key:
        nonlocal keys
        keys += 1
        if keys > MAX_KEYS:
            raise _TooManyKeys
        return kind(key)

    return msgspec.json.decode(raw, type=dict[_Key, Raw], dec_hook=counted)
