"""What a client asks for, read field by field; what cannot be carried is refused by its name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import msgspec
from msgspec import Raw, Struct

from backends.api import Call, RequestRefused

T = TypeVar("T")


class Asking(Struct, frozen=True):
    """The same question in a server's language."""

    fields: Mapping[str, Any]
    """The body's fields, as values or JSON."""
    said: str = ""
    """With what the client wants the answer to begin, which is not said again."""


def given(call: Call, name: str, type: type[T]) -> T | None:
    """A field's value; None when it is absent or null. Raises `RequestRefused` for one of another type."""
    raw = call.body.fields.get(name)
    return None if raw is None or is_null(raw) else understood(raw, name, type)


def is_null(raw: Raw) -> bool:
    """Whether it says null, or nothing; a large value is not copied for that."""
    return len(raw) <= len(b"null") and bytes(raw) in (b"", b"null")


def understood(raw: Raw | bytes, name: str, type: type[T]) -> T:
    """JSON of the field called `name`. Raises `RequestRefused` for what is not of this type."""
    try:
        return msgspec.json.decode(raw, type=type)
    except (msgspec.DecodeError, RecursionError) as error:
        raise RequestRefused(f"{name}: {error}", param=name) from None


def needed(raw: Raw, name: str, what: str) -> Raw:
    """A member of something in the field called `name`. Raises `RequestRefused` where it is missing."""
    if not raw:
        raise RequestRefused(f"{name}: {what} is missing", param=name)
    return raw


def required(call: Call, names: Iterable[str]) -> None:
    """Raises `RequestRefused` where one of the fields is missing."""
    for name in names:
        if is_null(call.body.fields.get(name, Raw())):
            raise RequestRefused(f"the field {name!r} is required", param=name)


def refuse(call: Call, harmless: Mapping[str, tuple[Any, ...]], why: str) -> None:
    """Raises `RequestRefused` for each of these fields that has a value which is not listed for it, nor null."""
    for name, values in harmless.items():
        raw = call.body.fields.get(name)
        if raw is not None and not is_null(raw) and understood(raw, name, Any) not in values:
            raise RequestRefused(f"{name!r} {why}", param=name)


def rest(call: Call, *known: Iterable[str]) -> dict[str, Any]:
    """The fields that are in none of these lists, which the server may know: they go on as they are."""
    names = {name for each in known for name in each}
    return {name: value for name, value in call.body.fields.items() if name not in names}
