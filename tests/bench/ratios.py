"""The committed ratios to the bare relay, best round to best round: what a quick run compares with.

A ratio differs less from machine to machine than microseconds do.
"""

from __future__ import annotations

import json
from pathlib import Path

from figures import OWN, RELAY, Figures

FILE = Path(__file__).with_suffix(".json")
NAMES = ("whole", "stream", "paced", "64k")
LOSS = 0.15


def _ratio(figures: Figures, name: str) -> float | None:
    ours, theirs = figures.best(OWN, name), figures.best(RELAY, name)
    return ours / theirs if ours and theirs else None


def losses(figures: Figures) -> list[str]:
    """What got slower by more than is allowed, in words; what was not measured is a loss too."""
    found = []
    for name, committed in json.loads(FILE.read_text()).items():
        ratio = _ratio(figures, name)
        if ratio is None:
            found.append(f"{name}: not measured")
        elif ratio > committed * (1 + LOSS):
            found.append(f"{name}: {ratio:.2f} times the {RELAY}, {ratio / committed - 1:.0%} more than {committed}")
    return found


def shown(figures: Figures) -> list[str]:
    """Each ratio beside the committed one."""
    committed = json.loads(FILE.read_text())
    return [
        f"{name}: {ratio:.2f} times the {RELAY}, committed {committed.get(name, '-')}"
        for name in NAMES
        if (ratio := _ratio(figures, name)) is not None
    ]


def commit(figures: Figures) -> None:
    """Write the ratios of this run to the file."""
    ratios = {name: round(ratio, 2) for name in NAMES if (ratio := _ratio(figures, name)) is not None}
    FILE.write_text(json.dumps(ratios, indent=2) + "\n")
