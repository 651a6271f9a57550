"""Reads counters out of what an engine exports for Prometheus."""

from __future__ import annotations

import math
import re
from functools import cache


def counted(text: str, *names: str) -> dict[str, int]:
    """The sums of these samples over all their labels; a name that is not there, or holds no number, is left out."""
    sums: dict[str, float] = {}
    for name, value in _samples(names).findall(text):
        try:
            sums[name] = sums.get(name, 0.0) + float(value)
        except ValueError:
            continue
    return {name: round(value) for name, value in sums.items() if math.isfinite(value)}


@cache
def _samples(names: tuple[str, ...]) -> re.Pattern[str]:
    either = "|".join(map(re.escape, names))
    return re.compile(rf"^({either})(?:\{{.*\}})?[ \t]+(\S+)", re.MULTILINE)
