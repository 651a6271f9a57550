"""Which policies are installed: entry points of the group `trunkline.policies`, ours too."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Protocol

from gateway.routing.policies.api import Policy

GROUP = "trunkline.policies"


class Factory(Protocol):
    """Makes the policy of one tier."""

    def __call__(self, names: Sequence[str], seed: int) -> Policy:
        """For the targets of these names; `seed` is for whatever it does at random."""


@cache
def installed() -> dict[str, EntryPoint]:
    """Installed policies by name."""
    return {point.name: point for point in sorted(entry_points(group=GROUP), key=lambda point: point.name)}


@cache
def load(name: str) -> Factory:
    """What makes this policy. Raises `KeyError` for a name that is not installed."""
    factory: Factory = installed()[name].load()
    return factory
