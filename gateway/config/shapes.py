"""What the types of the routing table ask for at each place of a document."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, get_args, get_origin

import msgspec
from msgspec import Struct

from gateway.config import units


class Shape(Struct, frozen=True):
    """What is expected at a place; worked out from the type once, not for each value."""

    what: Literal["leaf", "struct", "mapping", "sequence", "anything"]
    kind: Any
    """Of a leaf or a struct."""
    inner: Shape | None = None
    """Of each part of a mapping or a sequence."""
    optional: bool = False
    unit: units.Unit | None = None
    secret: bool = False


class Field(Struct, frozen=True):
    """A field of a struct."""

    name: str
    required: bool
    shape: Shape


def former_names(kind: type[Struct]) -> Mapping[str, str]:
    """Names that keys had a release ago, and have still, with those that they have now."""
    found: Mapping[str, str] = getattr(kind, "former", {})
    return found


@cache
def fields_of(kind: type[Struct]) -> dict[str, Field]:
    """The fields by the keys that the text has for them."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {
        field.encode_name: Field(field.name, field.required, shape_of(hints[field.name]))
        for field in msgspec.structs.fields(kind)
    }


def shape_of(kind: Any, optional: bool = False) -> Shape:
    """What a type asks for. The table uses structs, dicts, tuples of one type, plain values, anything
    that JSON has, and `... | None`."""
    if kind is Any:
        return Shape("anything", kind)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (typing.Union, types.UnionType):
        (kind,) = [argument for argument in arguments if argument is not type(None)]
        return shape_of(kind, optional=True)
    if isinstance(kind, type) and issubclass(kind, Struct):
        return Shape("struct", kind, optional=optional)
    if origin is dict:
        return Shape("mapping", kind, shape_of(arguments[1]), optional)
    if origin is tuple:
        return Shape("sequence", kind, shape_of(arguments[0]), optional)
    return Shape("leaf", kind, None, optional, units.unit_of(kind), units.is_secret(kind))
