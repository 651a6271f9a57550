"""Decodes a YAML document into Structs and finds every mistake on the way, each with its line and column."""

from __future__ import annotations

import difflib
import os
import re
import typing
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, get_args, get_origin

import msgspec
import yaml
from msgspec import Struct
from yaml.constructor import SafeConstructor

from gateway.config.composer import compose
from gateway.config.shapes import Shape, fields_of, former_names, shape_of

_REFERENCE = re.compile(r"\$\{(?:(file):)?([^}:]+?)(?::-([^}]*))?\}")
_MISSING: Any = object()
_SCALARS = {f"tag:yaml.org,2002:{name}" for name in ("int", "float", "bool", "null")}
MAX_VALUES = 250_000
"""Of one table; a route with four targets has about fifty."""


class Mistake(Struct, frozen=True):
    """One thing that is wrong, where it stands, and what would be right."""

    file: str
    line: int
    column: int
    message: str
    warning: bool = False
    needed: bool = False
    """A warning to a check, but serving needs it."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {'warning: ' if self.warning else ''}{self.message}"


class Mistakes(Exception):
    """The document cannot be used; `found` lists all that is wrong with it."""

    def __init__(self, found: list[Mistake]) -> None:
        super().__init__("\n".join(map(str, found)))
        self.found = found


class Document:
    """One YAML text being decoded. After `decode`, `at` tells where each path of keys stands."""

    def __init__(self, text: str, file: str, environment: Mapping[str, str] | None = None) -> None:
        self.file = file
        self.mistakes: list[Mistake] = []
        self.references: dict[tuple[str | int, ...], str] = {}
        """What the text says where it refers to a variable or a file, whose content may be secret."""
        self._environment = os.environ if environment is None else environment
        self._marks: dict[tuple[str | int, ...], yaml.Mark] = {}
        self._broken: set[tuple[str | int, ...]] = set()
        self._kept: dict[tuple[str | int, ...], list[int]] = {}
        """Of lists with parts that could not be decoded: where the others stand."""
        self._root: yaml.Node | None = None
        self._values = 0
        self._resolved: dict[str, str] = {}
        """What references stand for, and how they were written: the one is never shown, the other instead."""
        try:
            self._root = compose(text)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            what = " ".join(filter(None, (error.context, error.problem)))
            self._add(mark, f"not valid YAML: {what}")
        except yaml.YAMLError as error:
            self._add(None, f"not valid YAML: {' '.join(str(error).split())}")
        except RecursionError:
            self._add(None, "nested too deeply")

    def decode(self, kind: type[Struct]) -> Any:
        """The document as `kind`; whatever could not be decoded is missing from it and listed in `mistakes`."""
        if self._root is None:
            if not self.mistakes:
                self._add(None, "the file is empty")
            return _MISSING
        try:
            return self._value(self._root, shape_of(kind), ())
        except RecursionError:
            self._add(None, "nested too deeply")
            return _MISSING

    def report(self, path: tuple[str | int, ...], message: str, *, warning: bool = False, needed: bool = False) -> None:
        """Add a mistake found by a later check, at the nearest place that the text has for `path`."""
        path = self._written(path)
        while path and path not in self._marks:
            path = path[:-1]
        self._add(self._marks.get(path), message, warning=warning, needed=needed)

    def broken(self, *path: str | int) -> bool:
        """Something there, or within it, could not be decoded: what seems to be missing there may have been meant."""
        return self._written(path) in self._broken

    def refers(self, path: tuple[str | int, ...]) -> bool:
        """The text refers there to a variable or a file."""
        return self._written(path) in self.references

    def _written(self, path: tuple[str | int, ...]) -> tuple[str | int, ...]:
        """A path in what was decoded, as the text has it."""
        if not self._kept:
            return path
        written: tuple[str | int, ...] = ()
        for part in path:
            kept = self._kept.get(written)
            written += (part if kept is None or not isinstance(part, int) else kept[part],)
        return written

    def raise_mistakes(self) -> None:
        if found := [mistake for mistake in self.mistakes if not mistake.warning]:
            raise Mistakes(sorted(found, key=lambda mistake: (mistake.line, mistake.column)))

    def _add(self, mark: yaml.Mark | None, message: str, *, warning: bool = False, needed: bool = False) -> None:
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        self.mistakes.append(Mistake(self.file, line, column, self._as_written(message), warning or needed, needed))

    def _as_written(self, message: str) -> str:
        """The message with references instead of what they stand for, which may be a secret."""
        for value in sorted(self._resolved, key=len, reverse=True):
            message = re.sub(rf"(?<!\w){re.escape(value)}(?!\w)", partial(_as, self._resolved[value]), message)
        return message

    def _wrong(self, path: tuple[str | int, ...], node: yaml.Node, message: str) -> None:
        """Something at a place cannot be decoded."""
        self._broken.update(path[:end] for end in range(len(path) + 1))
        self._add(node.start_mark, message)

    def _value(self, node: yaml.Node, shape: Shape, path: tuple[str | int, ...]) -> Any:
        self._values += 1
        if self._values > MAX_VALUES:  # aliases of aliases make a small text a huge table
            if self._values == MAX_VALUES + 1:
                self._wrong(path, node, f"the table has more than {MAX_VALUES} values")
            return _MISSING
        self._marks.setdefault(path, node.start_mark)
        if shape.optional and node.tag == "tag:yaml.org,2002:null":
            return None
        if shape.what == "leaf":
            return self._leaf(node, shape, path)
        if shape.what == "anything":
            return self._anything(node, shape, path)
        if shape.what == "struct":
            return self._struct(node, shape.kind, path)
        assert shape.inner is not None
        return (self._mapping if shape.what == "mapping" else self._sequence)(node, shape.inner, path)

    def _pairs(self, node: yaml.Node, path: tuple[str | int, ...]) -> list[tuple[str, yaml.Node, yaml.Node]]:
        if not isinstance(node, yaml.MappingNode):
            self._wrong(path, node, f"{_name(path)}: expected a mapping, got {_shown(node)}")
            return []
        seen: dict[str, int] = {}
        pairs = []
        for key, value in node.value:
            name = str(key.value)
            if name in seen:
                self._wrong(path, key, f"{name!r} is given twice (first in line {seen[name]})")
                continue
            seen[name] = key.start_mark.line + 1
            pairs.append((name, key, value))
        return pairs

    def _struct(self, node: yaml.Node, kind: type[Struct], path: tuple[str | int, ...]) -> Any:
        fields = fields_of(kind)
        before, values = len(self.mistakes), {}
        former, given = former_names(kind), dict[str, str]()
        for name, key, value in self._pairs(node, path):
            now = former.get(name, name)
            if now in given:
                self._wrong(path, key, f"{name!r} and {given[now]!r} are the same key: give {now!r} alone")
                continue
            given[now] = name
            if now != name:
                self._add(key.start_mark, f"{name!r} is {now!r} now, and gone with the next release", warning=True)
                name = now  # the key that is meant
            if (field := fields.get(name)) is None:
                self._wrong(path, key, f"unknown key {name!r} in {_name(path)}; {_known(name, fields)}")
                continue
            place = (*path, name)
            self._marks[place] = key.start_mark
            decoded = self._value(value, field.shape, place)
            if decoded is not _MISSING:
                values[field.name] = decoded
        missing = [name for name, field in fields.items() if field.required and field.name not in values]
        if missing and len(self.mistakes) == before:
            for name in missing:
                self._wrong(path, node, f"{_name(path)}: the key {name!r} is missing")
        return _MISSING if missing else kind(**values)

    def _mapping(self, node: yaml.Node, shape: Shape, path: tuple[str | int, ...]) -> Any:
        values = {}
        for name, key, value in self._pairs(node, path):
            self._marks[(*path, name)] = key.start_mark
            decoded = self._value(value, shape, (*path, name))
            if decoded is not _MISSING:
                values[name] = decoded
        return values

    def _sequence(self, node: yaml.Node, shape: Shape, path: tuple[str | int, ...]) -> Any:
        if not isinstance(node, yaml.SequenceNode):
            self._wrong(path, node, f"{_name(path)}: expected a list, got {_shown(node)}")
            return _MISSING
        values = [self._value(item, shape, (*path, index)) for index, item in enumerate(node.value)]
        kept = [index for index, value in enumerate(values) if value is not _MISSING]
        if len(kept) < len(values):
            self._kept[path] = kept
        return tuple(values[index] for index in kept)

    def _anything(self, node: yaml.Node, shape: Shape, path: tuple[str | int, ...]) -> Any:
        """A value of any form, as JSON has it; of a key written as something else than text its text."""
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, shape, path)
        if isinstance(node, yaml.SequenceNode):
            found = self._sequence(node, shape, path)
            return found if found is _MISSING else [*found]
        return self._leaf(node, shape, path)

    def _leaf(self, node: yaml.Node, shape: Shape, path: tuple[str | int, ...]) -> Any:
        unit, secret = shape.unit, shape.secret
        if not isinstance(node, yaml.ScalarNode):
            what = expected(shape.kind) if unit is None else unit.allowed
            self._wrong(path, node, f"{_name(path)}: expected {what}, got {_shown(node)}")
            return _MISSING
        try:
            if secret and ((reference := _REFERENCE.fullmatch(node.value)) is None or reference[3]):
                raise ValueError("a secret must not stand in the table; write ${NAME} or ${file:/path}")
            value = _constructed(node)
            if isinstance(value, str) and "${" in value:
                self.references[path] = value
                value = self._substituted(value, node)
            if unit is not None:
                if (number := unit.parse(value)) <= 0 and not unit.zero:
                    raise ValueError("must be above 0")
                return number
            if secret:
                return value or None  # an optional credential whose variable is empty is none
            return msgspec.convert(value, shape.kind, strict=True)
        except msgspec.ValidationError:
            self._wrong(path, node, f"{_name(path)}: {_shown(node)} is not allowed; expected {expected(shape.kind)}")
        except ValueError as error:
            shown = "" if secret else f" {_shown(node)}:"
            self._wrong(path, node, f"{_name(path)}:{shown} {error}")
        return _MISSING

    def _substituted(self, text: str, node: yaml.Node) -> Any:
        """Replace `${NAME}`, `${NAME:-default}` and `${file:PATH}`."""

        def look_up(match: re.Match[str]) -> str:
            source, name, default = match[1], match[2], match[3]
            found = ""
            with suppress(OSError, UnicodeDecodeError):
                found = Path(name).read_text().strip() if source else self._environment.get(name, "")
            if not found and default is None:
                what = f"the file {name}" if source else f"the environment variable {name}"
                self._add(node.start_mark, f"{what} is missing or empty; it is needed to serve", needed=True)
                return match[0]
            if found:
                self._resolved[found] = self._resolved[repr(found)[1:-1]] = match[0]
            return found or default or ""

        return _REFERENCE.sub(look_up, text)


def _as(text: str, _: re.Match[str]) -> str:
    return text


def files(text: str) -> tuple[str, ...]:
    """The files that a text's `${file:...}` name, each once, in their order."""
    return tuple(dict.fromkeys(match[2] for match in _REFERENCE.finditer(text) if match[1]))


def unread(error: OSError | UnicodeDecodeError) -> str:
    """Why a file's text cannot be had, without its name."""
    if isinstance(error, UnicodeDecodeError):
        return f"it is no text in UTF-8 (byte {error.start})"
    return error.strerror or str(error)


def _constructed(node: yaml.ScalarNode) -> Any:
    """The scalar's value; text with a tag of another kind stays text, and is then told what is expected."""
    if node.tag not in _SCALARS:
        return node.value
    try:
        return SafeConstructor().construct_object(node)
    except Exception:  # PyYAML has a different one for each kind of nonsense
        return node.value


def _name(path: tuple[str | int, ...]) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.lstrip(".") or "the table"


def _known(name: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f"known keys: {', '.join(known)}" + (f" (did you mean {close[0]!r}?)" if close else "")


def _shown(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return repr(node.value[:80])
    return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"


def _bounds(meta: msgspec.Meta) -> tuple[tuple[str, float | None], ...]:
    return ("at least", meta.ge), ("above", meta.gt), ("at most", meta.le)


def expected(kind: Any) -> str:
    if get_origin(kind) is typing.Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    if get_origin(kind) is typing.Annotated:
        base, *metas = get_args(kind)
        bounds = [(word, number) for meta in metas for word, number in _bounds(meta) if number is not None]
        filled = "that is not empty" if any(meta.min_length for meta in metas) else ""
        said = (expected(base), " and ".join(f"{word} {number}" for word, number in bounds), filled)
        return " ".join(filter(None, said))
    return {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}.get(kind, str(kind))
