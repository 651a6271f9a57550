"""Reads counters out of what an engine exports for Prometheus."""

from __future__ import annotations

from backends.exposition import Exposition


def counted(text: str, *names: str) -> dict[str, int]:
    """The sums of these samples over all their labels; a name that is not there, or holds no number, is left out."""
    told = Exposition(text)
    return {name: total for name in names if (total := told.total(name)) is not None}
