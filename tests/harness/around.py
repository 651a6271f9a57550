"""A part of a store with something in its way."""

from __future__ import annotations

from typing import Any


class Around:
    """All that it does not do itself, `inner` does."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)
