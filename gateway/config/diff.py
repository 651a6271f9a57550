"""What another routing table would change: every field, which names mean something else, which targets end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from gateway.config import checks
from gateway.config.located import Document
from gateway.config.shapes import Shape, fields_of, shape_of
from gateway.config.source import unlaunched
from gateway.config.table import Table, TargetSpec
from gateway.config.units import Unit

NOTHING: Final = "-"
_ADDRESS: Final = ("backend", "url", "launch", "discover", "model", "api_key", "tls", "proxy", "headers")


class Side(Struct, frozen=True):
    """One of the two tables."""

    table: Table
    document: Document


class Change(Struct, frozen=True):
    """One difference. What stands where the table refers to a variable or a file is the reference, never its value."""

    what: Literal["added", "removed", "changed"]
    path: tuple[str, ...]
    """The keys from the top; a target's is its name."""
    before: str | None = None
    after: str | None = None


class Meaning(Struct, frozen=True):
    """A model name or alias that leads to another route; None: to none."""

    name: str
    before: str | None
    after: str | None


class Difference(Struct, frozen=True):
    """All that changes from one table to another."""

    changes: list[Change]
    names: list[Meaning]
    drained: list[str]
    """Targets that get no more calls: what they have begun they finish."""
    replaced: list[str]
    """Targets whose calls go to another server or model, or with another credential, from now on."""
    restart: list[str]
    """Why a running gateway would refuse the table."""


class _Node(Struct, frozen=True):
    """A part of a table as it is shown."""

    text: str = NOTHING
    parts: dict[str, _Node] | None = None
    members: bool = False
    """The parts come and go, as routes and targets do; otherwise they are fields."""
    default: bool = False


def read(text: str, file: str, environment: Mapping[str, str] | None = None) -> Side:
    """Read and check one of the tables. Raises `Mistakes`."""
    document = Document(text, file, environment)
    table = document.decode(Table)
    if isinstance(table, Table):
        checks.check(document, table)
    document.raise_mistakes()
    return Side(table, document)


def difference(old: Side, new: Side) -> Difference:
    """What changes from `old` to `new`."""
    before, after = ({target.name: target for _, _, target in side.table.targets()} for side in (old, new))
    launched = {name: "" for name, target in before.items() if target.launch is not None}
    return Difference(
        list(_changes(_tree(old), _tree(new), ())),
        list(_meanings(old.table, new.table)),
        [name for name in before if name not in after],
        [name for name in before if name in after and _address(before[name]) != _address(after[name])],
        unlaunched(new.table, launched, old.table),
    )


def _address(target: TargetSpec) -> list[object]:
    return [getattr(target, field) for field in _ADDRESS]


def _meanings(old: Table, new: Table) -> Iterator[Meaning]:
    before, after = old.names(), new.names()
    names = dict.fromkeys([*before.exact, *after.exact, *(glob for glob, _ in (*before.globs, *after.globs))])
    for name in names:  # a glob is found as the names that it stands for are, unless another covers some of them
        if (was := before.find(name)) != (becomes := after.find(name)):
            yield Meaning(name, was, becomes)


def _changes(old: _Node, new: _Node, path: tuple[str, ...]) -> Iterator[Change]:
    if old.parts is None or new.parts is None:
        if (old.text, old.parts) != (new.text, new.parts):
            what: Literal["added", "removed", "changed"] = "changed"
            if old.parts is None and new.parts is not None:
                what = "added"
            elif new.parts is None and old.parts is not None:
                what = "removed"
            yield Change(what, path, _summary(old), _summary(new))
        return
    for name in dict.fromkeys([*old.parts, *new.parts]):
        where = (*path, name)
        if name not in new.parts:
            yield Change("removed", where, _summary(old.parts[name]))
        elif name not in old.parts:
            yield Change("added", where, after=_summary(new.parts[name]))
        else:
            yield from _changes(old.parts[name], new.parts[name], where)


def _summary(node: _Node) -> str:
    """A part in a line: what it says beyond the defaults."""
    return node.text if node.parts is None else ", ".join(_said(node, ""))


def _said(node: _Node, prefix: str) -> Iterator[str]:
    if node.parts is None:
        yield f"{prefix} {node.text}".strip()
    elif node.members and prefix and any(part.parts is not None for part in node.parts.values()):
        yield f"{prefix} {'+'.join(node.parts)}"
    else:
        for name, part in node.parts.items():
            if not part.default:
                yield from _said(part, f"{prefix}.{name}" if prefix else name)


def _tree(side: Side) -> _Node:
    return _node(side.table, shape_of(Table), (), side.document.references)


def _node(
    value: Any, shape: Shape, place: tuple[str | int, ...], references: Mapping[tuple[str | int, ...], str]
) -> _Node:
    if value is None:
        return _Node()
    if shape.what == "struct":
        return _Node(parts=_fields(value, place, references))
    if shape.what == "leaf":
        return _Node(references.get(place) or _leaf(value, shape))
    assert shape.inner is not None
    inner = shape.inner
    if shape.what == "mapping":
        parts = {key: _node(each, inner, (*place, key), references) for key, each in value.items()}
        return _Node(parts=parts, members=True)
    nodes = [_node(each, inner, (*place, index), references) for index, each in enumerate(value)]
    if inner.what == "struct":
        names = [getattr(each, "name", str(index + 1)) for index, each in enumerate(value)]
        return _Node(parts=dict(zip(names, nodes, strict=True)), members=True)
    return _Node(" ".join(node.text for node in nodes) or NOTHING)


def _fields(
    value: Struct, place: tuple[str | int, ...], references: Mapping[tuple[str | int, ...], str]
) -> dict[str, _Node]:
    parts = {}
    for (key, field), told in zip(fields_of(type(value)).items(), msgspec.structs.fields(value), strict=True):
        each = getattr(value, field.name)
        node = _node(each, field.shape, (*place, key), references)
        default = told.default if told.default_factory is msgspec.NODEFAULT else told.default_factory()
        parts[key] = msgspec.structs.replace(node, default=each == default)
    return parts


def _leaf(value: Any, shape: Shape) -> str:
    if shape.secret:
        return "(secret)"
    if shape.unit is not None:
        return _quantity(shape.unit, value)
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _quantity(unit: Unit, value: float) -> str:
    shown = unit.shown(value)
    if isinstance(shown, str) or unit.bare:
        return str(shown)
    name, factor = min(unit.factors.items(), key=lambda pair: pair[1])
    return f"{value / factor:g}{name}"
