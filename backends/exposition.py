"""Reads what an engine exports for Prometheus: only the asked names are looked at, as there may be thousands."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_SAMPLE = re.compile(r'(?:\{((?:[^"}\n]|"(?:[^"\\\n]|\\.)*+")*+)\})?[ \t]+([^\s]+)')
_LABEL = re.compile(r'([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*+)"')


class Sample(NamedTuple):
    """One line: labels (escapes kept as they are) and value, which may be no finite number."""

    labels: dict[str, str]
    value: float


class Exposition:
    """A text of samples. Where several names are given, the first one that is there counts: engines rename theirs."""

    def __init__(self, text: str) -> None:
        self._text = "\n" + text

    def samples(self, name: str) -> Iterator[Sample]:
        """All lines of this name, in order; what is no number is left out."""
        mark = "\n" + name
        at = self._text.find(mark)
        while at >= 0:
            at += len(mark)
            if found := _SAMPLE.match(self._text, at):
                try:
                    value = float(found[2])
                except ValueError:
                    pass
                else:
                    yield Sample(dict(_LABEL.findall(found[1] or "")), value)
            at = self._text.find(mark, at)

    def values(self, *names: str) -> list[float]:
        """The values of the first name that has finite ones, over all labels."""
        for name in names:
            values = [sample.value for sample in self.samples(name)]
            if values and math.isfinite(sum(values)):
                return values
        return []

    def total(self, *names: str) -> int | None:
        """Their sum, rounded; None when no name is there."""
        values = self.values(*names)
        return round(sum(values)) if values else None

    def mean(self, *names: str) -> float | None:
        """Their mean; None when no name is there."""
        values = self.values(*names)
        return sum(values) / len(values) if values else None
