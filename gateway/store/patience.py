"""A time-out that counts the server's time and not our own: for answers that we may be too busy to read."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

SLICE_SECONDS = 0.025
"""What one turn of the clock counts, however late it comes: what is above it, this loop spent on other work."""


class Patience:
    """As `asyncio.timeout`; `spent` is the time that counted, in seconds.

    When hundreds of calls arrive in one turn of the loop, it is behind by more than the time-out although the answer
    has been here all the while. Taking that for an outage would turn every burst into one.
    """

    def __init__(self, seconds: float) -> None:
        self._most, self.spent = seconds, 0.0
        self._over = self._expired = False

    async def __aenter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None
        self._loop, self._task = asyncio.get_running_loop(), task
        self._began = self._loop.time()
        self._turn = self._loop.call_later(SLICE_SECONDS, self._tick)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over = True
        self._turn.cancel()
        self.spent = min(self._loop.time() - self._began, self.spent + SLICE_SECONDS)
        if self._expired and kind is asyncio.CancelledError and self._task.uncancel() <= 0:
            raise TimeoutError from error

    def _tick(self) -> None:
        self.spent += SLICE_SECONDS
        if self.spent < self._most:
            self._turn = self._loop.call_later(SLICE_SECONDS, self._tick)
        else:  # one more turn: sockets are read after timers
            self._loop.call_soon(self._loop.call_soon, self._expire)

    def _expire(self) -> None:
        if not self._over:
            self._expired = True
            self._task.cancel()
