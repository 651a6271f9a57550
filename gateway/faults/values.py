"""The values that a fault may take in an order, and what is said of a wrong one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

from msgspec import Struct

from gateway.config.units import SIZE as SIZE_UNIT


class Value(Struct, frozen=True):
    """A kind of value: its name in help texts, what is allowed, and how its text is read."""

    name: str
    allowed: str
    parse: Callable[[str], Any]
    """Raises `ValueError`."""

    def read(self, text: str) -> Any:
        """As `parse`; the error says what is allowed."""
        try:
            return self.parse(text)
        except ValueError:
            raise ValueError(f"{text[:80]!r}: expected {self.allowed}") from None


def _number(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value >= 0):
        raise ValueError
    return value


def _count(text: str) -> int:
    if not text.isdecimal():
        raise ValueError
    return int(text)


def _within(low: float, high: float, parse: Callable[[str], Any]) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        value = parse(text)
        if not low <= value <= high:
            raise ValueError
        return value

    return read


def _size(text: str) -> int:
    return int(text) if text.isdecimal() else int(SIZE_UNIT.parse(text))


def one_of(*names: str) -> Value:
    """One of these words."""

    def parse(text: str) -> str:
        if text not in names:
            raise ValueError
        return text

    return Value("KIND", f"one of {', '.join(names)}", parse)


SECONDS: Final = Value("S", "seconds such as 0.5", _within(0, 86400, _number))
EVENTS: Final = Value("N", "a number of events, 0 or more", _count)
COUNT: Final = Value("N", "a number, 0 or more", _count)
INTEGER: Final = Value("N", "a whole number, which may be below 0", int)
SIZE: Final = Value("BYTES", "bytes such as 4096 or 8MiB, up to 1GiB", _within(0, 1024**3, _size))
SHARE: Final = Value("P", "a probability from 0 to 1", _within(0, 1, _number))
STATUS: Final = Value("CODE", "a status from 300 to 599", _within(300, 599, _count))
TEXT: Final = Value("VALUE", "a text", str)
