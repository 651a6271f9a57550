"""The most calls that ran at once at targets whose calls are bounded: while Redis was well, and while it was not."""

from __future__ import annotations

import asyncio
from collections import Counter

from soak.fakes import Steady

AFTER_SECONDS = 5.0
"""How long calls may go on that were let in while Redis could not be asked."""


class Peaks:
    """The steady target's peaks, in two heaps."""

    def __init__(self, steady: Steady) -> None:
        self._steady = steady
        self.calm: Counter[str] = Counter()
        self.rough: Counter[str] = Counter()
        self._outages = 0

    def outage_begins(self) -> None:
        if not self._outages:
            self.fold()
        self._outages += 1

    def outage_ends(self) -> None:
        asyncio.get_running_loop().call_later(AFTER_SECONDS, self._over)

    def fold(self) -> None:
        """Take in what was seen since the last time."""
        heap = self.rough if self._outages else self.calm
        for model, peak in self._steady.peak.items():
            heap[model] = max(heap[model], peak)
        self._steady.peak = Counter(self._steady.now)

    def _over(self) -> None:
        self.fold()
        self._outages -= 1
