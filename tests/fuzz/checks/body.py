"""The body and its splicer, beside the standard library's reader."""

from __future__ import annotations

import json
import re
from typing import Any

from fuzz.feeding import Harness, allow, short
from harness.captures import captures

from backends.body import SMALL, Body, Malformed
from backends.samples import OPENAI

DEPTH = 900
"""Up to here both must read a body; beyond it either may refuse."""
_SPACE = re.compile(r"[ \t\r\n]*")
_scanner = json.JSONDecoder(parse_int=str)  # Python reads no number of 5000 digits


class _Twice(ValueError):
    """A key came twice at the top."""


def check(data: bytes) -> None:
    """What is read is what the standard library reads, and what is spliced changes nothing else."""
    members = _members(data)
    body = allow(Malformed, Body, data)
    if body is None:
        assert members is None or _mayrefuse(data), "refused, though it is an object without repeated keys"
        return
    if members is None:  # numbers beyond all floats are no JSON to `json`, and deep nesting is beyond it
        assert data.count(b"[") + data.count(b"{") > DEPTH, "taken, though it is no JSON object or has a key twice"
        return
    assert list(body.fields) == [name for name, _, _ in members]
    for name, start, end in members:
        assert bytes(body.fields[name]) == data[start:end]
    _get(body)
    _splice(body, data, members)


def _get(body: Body) -> None:
    for name in body.fields:
        for kind in (str, bool, int, float, list, dict):
            allow(Malformed, body.get, name, kind, None)
    decoded = allow(Malformed, body.decoded)
    assert decoded is None or list(decoded) == list(body.fields)


def _splice(body: Body, data: bytes, members: list[tuple[str, int, int]]) -> None:
    assert body.spliced({}) == data
    for name, start, end in members[:40]:
        assert body.spliced({name: b"[7]"}) == data[:start] + b"[7]" + data[end:]
    changed = body.spliced({**{name: b'"\\ud83d\\ude00"' for name, _, _ in members[::2]}, "n\u00e9w": b"1"})
    again = Body(changed)
    expected = {name: bytes(raw) for name, raw in body.fields.items()}
    expected |= {name: b'"\\ud83d\\ude00"' for name, _, _ in members[::2]} | {"n\u00e9w": b"1"}
    assert {name: bytes(raw) for name, raw in again.fields.items()} == expected
    last = members[-1][2] if members else data.index(b"{") + 1
    assert body.spliced({"n\u00e9w2": b"1"}) == (
        data[:last] + b"," * bool(members) + b'"n\xc3\xa9w2":1' + data[last:]
        if "n\u00e9w2" not in body.fields
        else data
    )


def _members(data: bytes) -> list[tuple[str, int, int]] | None:
    """Names and places of the members of the top object; None if this is none, or has a key twice."""
    try:
        text = data.decode()
        value = json.loads(text, parse_constant=_refuse, parse_int=str)
        if not isinstance(value, dict):
            return None
        _no_surrogates(text)
        return _places(text)
    except (ValueError, RecursionError):
        return None


def _places(text: str) -> list[tuple[str, int, int]]:
    """Walks along the top object, whose text is known to be good."""
    found: list[tuple[str, int, int]] = []
    at = text.index("{") + 1
    at = _skip(text, at)
    while text[at] != "}":
        if text[at] == ",":
            at = _skip(text, at + 1)
        name, at = _scanner.raw_decode(text, at)
        start = _skip(text, _skip(text, at) + 1)
        _, end = _scanner.raw_decode(text, start)
        if name in (known for known, _, _ in found):
            raise _Twice
        found.append((name, len(text[:start].encode()), len(text[:end].encode())))
        at = _skip(text, end)
    return found


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match is not None
    return match.end()


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def _no_surrogates(text: str) -> None:
    """Half a character is none: `json` would read it, and nobody could write it."""
    for string in re.findall(r'"(?:[^"\\]|\\.)*"', text):
        json.loads(string).encode()


def _mayrefuse(data: bytes) -> bool:
    return len(data) > SMALL or data.count(b"[") + data.count(b"{") > DEPTH


_recorded = [capture.request for capture in captures("*/*-chat*")]
HARNESS = Harness("body", check, short([sample.asked for sample in OPENAI] + _recorded, 3000))
