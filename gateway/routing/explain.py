"""How a target is picked, told to people: each candidate, why it was left out, what it would cost."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import Struct


class Candidacy(Struct, frozen=True, omit_defaults=True):
    """One target in one decision."""

    route: str
    tier: int
    target: str
    policy: str = ""
    refused: str = ""
    """Why the call cannot go there; empty: it can."""
    cost: float | None = None
    """What the policy makes of it; the lowest is picked. None: it was not looked at."""
    cached: int = 0
    """Prompt tokens expected in its cache."""
    reason: str = ""
    """What it would be picked for."""
    picked: bool = False
    weight: float = 1.0
    running: int = 0
    """Calls there, of all gateways as far as known."""
    waiting: int = 0
    """Of these, calls without a first token."""
    pending: int = 0
    """Prompt tokens it has still to read."""


MOST_TOLD = 16
"""Candidates in a header: with more, clients would refuse the whole answer."""


def explained(candidacies: Sequence[Candidacy]) -> bytes:
    """As one line of JSON for a header: the picked one first, then the cheapest."""

    def rank(each: Candidacy) -> tuple[bool, bool, float]:
        return not each.picked, each.cost is None, each.cost or 0.0

    return msgspec.json.encode(sorted(candidacies, key=rank)[:MOST_TOLD])
