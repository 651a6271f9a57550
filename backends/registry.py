"""Finds adapters by the entry point group `trunkline.backends`; the built-in ones come through the same door."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from backends.api import Adapter
from backends.capabilities import Capabilities

GROUP = "trunkline.backends"


def installed() -> dict[str, EntryPoint]:
    """The entry points of all installed adapters, by the name that `backend:` uses."""
    return {point.name: point for point in sorted(entry_points(group=GROUP), key=lambda point: point.name)}


def load(name: str) -> Adapter:
    """A new adapter of this name. Raises `KeyError` for an unknown name, `TypeError` if it lacks a required method."""
    adapter: Adapter = installed()[name].load()()
    for method in ("request", "reply", "chunk"):
        if not callable(getattr(adapter, method, None)):
            raise TypeError(f"backend {name!r}: {type(adapter).__qualname__} has no method {method!r}")
    return adapter


def capabilities(name: str) -> Capabilities:
    """A new adapter of this name and what it can do; raises as `load` does."""
    return Capabilities.of(load(name))
