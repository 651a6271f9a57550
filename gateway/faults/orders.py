"""Which call gets which fault: what the call itself asks for, else a script, else the default."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any, Final

import msgspec
import yaml
from msgspec import Struct

from gateway.faults.vocabulary import FAULTS, Fault
from gateway.faults.wire import HttpRequest
from gateway.faults.words import said, text_of

FIELD: Final = "x_fault"
"""Of the body; a gateway passes it on, other than the header `x-fault`."""
_BETWEEN = re.compile(r",(?=[a-z0-9_]+(?:=|,|$))")
_RANGE = re.compile(r"(\d+)(?:-(\d+)?)?")


class BadOrder(ValueError):
    """An order that means nothing; says what would."""


class Ordered(Struct, frozen=True):
    """A fault with its value."""

    fault: Fault
    value: Any

    def __str__(self) -> str:
        return self.fault.name if self.fault.value is None else f"{self.fault.name}={self.value}"


def parse(text: str) -> tuple[Ordered, ...]:
    """The faults of an order such as `slow=0.1,stall=3`. Raises `BadOrder`."""
    return tuple(_one(part.strip()) for part in _BETWEEN.split(text) if part.strip())


def _one(text: str) -> Ordered:
    name, equals, given = text.partition("=")
    found = FAULTS.get(name)
    if found is None:
        raise BadOrder(f"{name[:80]!r} is no fault; expected one of {', '.join(FAULTS)}")
    if found.value is None:
        if equals:
            raise BadOrder(f"{name}: takes no value")
        return Ordered(found, None)
    if not equals:
        return Ordered(found, found.default)
    try:
        return Ordered(found, found.value.parse(given))
    except ValueError:
        raise BadOrder(f"{name}={given[:80]}: expected {found.value.allowed}") from None


class Entry(Struct, frozen=True, forbid_unknown_fields=True):
    """One entry of a script: a fault for those of the requests it fits, the first entry that fits wins."""

    fault: str
    calls: int | str | list[int] | None = None
    """Their numbers, from 1: `5`, `"2-4"`, `"10-"`, `[1, 3]`; counted among those that fit the rest."""
    every: int | None = None
    """Each so-many-th of them."""
    probability: float = 1.0
    path: str | None = None
    """A path, `*` allowed; without it calls only, no probes."""
    stream: bool | None = None
    """Streamed calls only, or whole ones only."""
    resumed: bool | None = None
    """Only calls that continue a broken answer, or only others."""


class Rule:
    """An entry at work: it counts what it fits."""

    def __init__(self, entry: Entry) -> None:
        self._entry = entry
        self.ordered = parse(entry.fault)
        self._numbers = _numbers(entry.calls)
        self._seen = 0

    def fits(self, request: HttpRequest, body: dict[str, Any], *, is_call: bool, chance: Random) -> bool:
        entry = self._entry
        if not (is_call if entry.path is None else fnmatch.fnmatchcase(request.path, entry.path)):
            return False
        if entry.stream is not None and entry.stream is not (body.get("stream") is True):
            return False
        if entry.resumed is not None and entry.resumed is not _is_resumed(body):
            return False
        self._seen += 1
        if self._numbers is not None and not any(first <= self._seen <= last for first, last in self._numbers):
            return False
        if entry.every is not None and self._seen % max(1, entry.every):
            return False
        return entry.probability >= 1 or chance.random() < entry.probability


class Orders:
    """All that is ordered of one server. The same seed, the same chances."""

    def __init__(self, default: str = "", script: Sequence[Entry] = (), *, name: str = "", seed: int = 1) -> None:
        self.default = parse(default)
        self._rules = [Rule(entry) for entry in script]
        self.name = name
        """By which an object in the body names this backend."""
        self.chance = Random(seed)  # noqa: S311 # faults are no secret

    def of(self, request: HttpRequest, *, is_call: bool) -> tuple[Ordered, ...]:
        """The faults for this request: by its header, its body, the script, the default. Raises `BadOrder`."""
        if (asked := request.headers.get("x-fault")) is not None:
            return parse(asked)
        body = _object(request)
        if FIELD in body:
            asked = body[FIELD]
            if isinstance(asked, dict):  # by the names of backends, as all of them may get the same call
                asked = asked.get(self.name, "")
            if not isinstance(asked, str):
                raise BadOrder(f"{FIELD}: expected a text such as 'stall=3', or an object of such texts by --name")
            return parse(asked)
        fitting = [rule for rule in self._rules if rule.fits(request, body, is_call=is_call, chance=self.chance)]
        if fitting:  # all of them have counted the request
            return fitting[0].ordered
        return self.default if is_call else ()


def read_script(path: Path) -> list[Entry]:
    """The entries of a YAML or JSON file. Raises `BadOrder` naming the entry, `OSError`."""
    try:
        found = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadOrder(f"{path.name}: {error}") from None
    if not isinstance(found, list):
        raise BadOrder(f"{path.name}: expected a list of entries such as {{calls: 1-3, fault: hang}}")
    entries = []
    for number, item in enumerate(found, 1):
        try:
            entries.append(msgspec.convert(item, Entry))
            Rule(entries[-1])
        except (msgspec.ValidationError, BadOrder) as error:
            fields = ", ".join(Entry.__struct_fields__)
            raise BadOrder(f"{path.name}, entry {number}: {error} (fields: {fields})") from None
    return entries


def _numbers(calls: int | str | list[int] | None) -> list[tuple[int, float]] | None:
    if calls is None:
        return None
    if isinstance(calls, str):
        match = _RANGE.fullmatch(calls.strip())
        if match is None:
            raise BadOrder(f"calls: {calls!r}: expected a number, a range such as 2-4 or 10-, or a list of numbers")
        first = int(match[1])
        open_ended = "-" in calls
        return [(first, int(match[2]) if match[2] else float("inf") if open_ended else first)]
    return [(number, number) for number in (calls if isinstance(calls, list) else [calls])]


def _is_resumed(body: dict[str, Any]) -> bool:
    """The call asks to go on with an answer: by vLLM's field, or with a last message of the assistant's or a raw prompt
    that ends in our words."""
    if body.get("continue_final_message") is True:
        return True
    messages = body.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    if isinstance(last, dict) and last.get("role") == "assistant" and said(text_of(last.get("content"))):
        return True
    return any(said(text_of(body.get(name))) for name in ("prompt", "inputs"))


def _object(request: HttpRequest) -> dict[str, Any]:
    try:
        body = request.json() if request.body else {}
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}
