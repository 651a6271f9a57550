"""Routing policies: one file each, found by the entry points in `trunkline.policies`. Yours imports from here."""

from gateway.routing.policies.api import (
    Candidate,
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
    Tells,
    cheapest,
    ripe,
)

__all__ = [
    "Candidate",
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
    "Tells",
    "cheapest",
    "ripe",
]
