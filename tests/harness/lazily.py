"""Packages that take a second to import, for the process that uses them: all processes of tests collect all tests."""

from __future__ import annotations

from importlib import import_module
from typing import Any


class Lazily:
    """A module that is imported when something of it is first looked at."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, what: str) -> Any:
        if what.startswith(("_", "pytest")):  # pytest looks whether this is a test
            raise AttributeError(what)
        return getattr(import_module(self._name), what)
