"""Routing policies: one file each, found by the entry points in `trunkline.policies`. Yours imports from here."""

from gateway.routing.policies.api import (
    Candidate,
    Gossips,
    Inherits,
    Learns,
    Note,
    Picker,
    Policy,
    Prompt,
    Reason,
    Remembers,
    Score,
    Scorer,
    cheapest,
    ripe,
)

__all__ = [
    "Candidate",
    "Gossips",
    "Inherits",
    "Learns",
    "Note",
    "Picker",
    "Policy",
    "Prompt",
    "Reason",
    "Remembers",
    "Score",
    "Scorer",
    "cheapest",
    "ripe",
]
