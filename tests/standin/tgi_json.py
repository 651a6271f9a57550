"""Decodes JSON as strictly as TGI's typed bodies are: what it would refuse is refused here, in its manner."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

type_names = {bool: "boolean", int: "integer", float: "floating point", str: "string", list: "sequence", dict: "map"}


class Rejected(Exception):
    """A body TGI's web framework refuses before TGI sees it; answered as plain text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Mismatch(ValueError):
    """One value is not of the type its field wants."""

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(message)
        self.path = path

    def inside(self, name: str) -> "Mismatch":
        joint = "" if not self.path or self.path.startswith("[") else "."
        return Mismatch(str(self), f"{name}{joint}{self.path}")


class Object(dict[str, Any]):
    """A JSON object that remembers which of its keys were written twice."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        names = [name for name, _ in pairs]
        self.repeated = {name for name in names if names.count(name) > 1} if len(names) != len(self) else set()


Check = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Field:
    check: Check
    default: Callable[[], Any] | None = None
    aliases: tuple[str, ...] = ()


def wrong(value: Any, expected: str) -> Mismatch:
    if value is None:
        found = "null"
    elif isinstance(value, str):
        found = f'string "{value}"'
    elif isinstance(value, bool):
        found = f"boolean `{str(value).lower()}`"
    elif isinstance(value, int | float):
        found = f"{type_names[type(value)]} `{value}`"
    else:
        found = "sequence" if isinstance(value, list) else "map"
    return Mismatch(f"invalid type: {found}, expected {expected}")


def string(value: Any) -> str:
    if not isinstance(value, str):
        raise wrong(value, "a string")
    return value


def boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise wrong(value, "a boolean")
    return value


def number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong(value, "f32")
    return float(value)


def integer(name: str, low: int, high: int) -> Check:
    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise wrong(value, name)
        if not low <= value <= high:
            raise Mismatch(f"invalid value: integer `{value}`, expected {name}")
        return value

    return check


i32 = integer("i32", -(2**31), 2**31 - 1)
u32 = integer("u32", 0, 2**32 - 1)
u64 = integer("u64", 0, 2**64 - 1)
usize = integer("usize", 0, 2**64 - 1)


def anything(value: Any) -> Any:
    return value


def optional(check: Check) -> Field:
    return Field(lambda value: None if value is None else check(value), default=lambda: None)


def flag(default: bool = False) -> Field:
    return Field(boolean, default=lambda: default)


def list_of(check: Check) -> Check:
    def whole(value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise wrong(value, "a sequence")
        result = []
        for index, item in enumerate(value):
            try:
                result.append(check(item))
            except Mismatch as mismatch:
                raise mismatch.inside(f"[{index}]") from None
        return result

    return whole


def struct(name: str, fields: Mapping[str, Field], build: Callable[..., Any] = dict) -> Check:
    """Known fields are checked, unknown ones ignored; a field given twice, also by its alias, is refused."""

    def check(value: Any) -> Any:
        if not isinstance(value, dict):
            raise wrong(value, f"struct {name}")
        found = {}
        for key, spec in fields.items():
            given = [alias for alias in (key, *spec.aliases) if alias in value]
            if len(given) > 1 or (given and given[0] in getattr(value, "repeated", ())):
                raise Mismatch(f"duplicate field `{key}`")
            if given:
                try:
                    found[key] = spec.check(value[given[0]])
                except Mismatch as mismatch:
                    raise mismatch.inside(key) from None
            elif spec.default is not None:
                found[key] = spec.default()
            else:
                raise Mismatch(f"missing field `{key}`")
        return build(**found)

    return check


def untagged(name: str, *checks: Check) -> Check:
    def check(value: Any) -> Any:
        for candidate in checks:
            try:
                return candidate(value)
            except Mismatch:
                continue
        raise Mismatch(f"data did not match any variant of untagged enum {name}")

    return check


def decode(check: Check, content_type: str, body: bytes) -> Any:
    """Decode a body, or raise the plain-text rejection it meets."""
    media = content_type.partition(";")[0].strip().lower()
    if media != "application/json" and not (media.startswith("application/") and media.endswith("+json")):
        raise Rejected(415, "Expected request with `Content-Type: application/json`")
    try:
        value = json.loads(body.decode(), object_pairs_hook=Object)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "invalid unicode code point"
        where = (error.lineno, error.colno) if isinstance(error, json.JSONDecodeError) else (1, error.start)
        text = f"Failed to parse the request body as JSON: {reason} at line {where[0]} column {where[1]}"
        raise Rejected(400, text) from None
    try:
        return check(value)
    except Mismatch as mismatch:
        path = f"{mismatch.path}: " if mismatch.path else ""
        raise Rejected(
            422,
            f"Failed to deserialize the JSON body into the target type: {path}{mismatch} at line 1 column {len(body)}",
        ) from None
