"""How late a worker's event loop is: what one caller's work makes all others wait."""

from __future__ import annotations

import asyncio
from typing import Final

from prometheus_client import Histogram

TICK_SECONDS: Final = 0.1


class LoopLag:
    """Observes, ten times a second, how much later than due the loop came to it."""

    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram
        self._timer: asyncio.TimerHandle | None = None

    def open(self) -> None:
        """Begin."""
        self._wait(asyncio.get_running_loop())

    def close(self) -> None:
        """End."""
        if self._timer is not None:
            self._timer.cancel()

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        due = loop.time() + TICK_SECONDS
        self._timer = loop.call_at(due, self._tick, loop, due)

    def _tick(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        self._histogram.observe(max(0.0, loop.time() - due))
        self._wait(loop)
