"""How fast a queue moves: calls placed a second, of which the older count less."""

from __future__ import annotations

import math
from typing import Final

MEMORY_SECONDS: Final = 20.0
"""After so long a call counts 1/e."""
AT_ONCE_SECONDS: Final = 0.02
"""What is placed so soon after others counts as placed with them: at most a thousandth more."""


class Drain:
    """An average that does not take a young measurement for a slow queue."""

    def __init__(self) -> None:
        self._began = self._at = -math.inf
        self._sum = 0.0

    def count(self, now: float) -> None:
        """One call more was placed, at `now` seconds."""
        if now - self._at < AT_ONCE_SECONDS:
            self._sum += 1.0
            return
        self._sum = 1.0 + self._left(now)
        if self._sum < 1.1:  # the first, or the first after a long time: it tells of no rate yet
            self._began = now
        self._at = now

    def rate(self, now: float) -> float:
        """Calls placed a second; 0 while there were none."""
        seen = -math.expm1(-max(1.0, now - self._began) / MEMORY_SECONDS)
        return self._left(now) / (MEMORY_SECONDS * seen)

    def _left(self, now: float) -> float:
        return self._sum * math.exp((self._at - now) / MEMORY_SECONDS)
