"""Where what calls go on with is, as long as the gateway lives: a gateway alone is its only worker."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

MOST: Final = 100_000
"""More are not remembered: the oldest go."""


class LocalHomes:
    """`now` gives seconds since the epoch."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._homes: OrderedDict[tuple[str, str], tuple[str, float]] = OrderedDict()

    async def remember(self, tenant: str, name: str, target: str, seconds: int) -> None:
        self._homes.pop((tenant, name), None)
        self._homes[tenant, name] = target, self._now() + seconds
        if len(self._homes) > MOST:
            self._homes.popitem(last=False)

    async def forget(self, tenant: str, name: str) -> None:
        self._homes.pop((tenant, name), None)

    async def recall(self, tenant: str, name: str) -> str | None:
        target, until = self._homes.get((tenant, name), ("", 0.0))
        return target if self._now() < until else None
