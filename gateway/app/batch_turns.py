"""Which lines of batches may be asked now: few while others wait for answers, and as many of a batch as goes well."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

BESIDE: Final = 4
"""While calls that somebody waits for are under way, at most one of so many lines goes on beside them."""
BUSY_SECONDS: Final = 1.0
"""For so long after such a call the next one is expected."""
LOOK_SECONDS: Final = 0.1
"""How often those that wait are looked at, besides whenever a line ends."""


class Paced(Protocol):
    """A batch whose lines ask for turns."""

    running: int
    """Of its lines, those that have a turn."""
    window: float
    """So many may have one."""
    paused_until: float
    """By the loop's clock: before that none gets one."""


class Turns:
    """At most `lines` of this worker at once. `busy` says whether calls of others are under way."""

    def __init__(self, lines: int, busy: Callable[[], bool]) -> None:
        self.lines, self._busy = lines, busy
        self.running = 0
        """Lines that have a turn."""
        self._waiting: deque[tuple[Paced, float, asyncio.Future[None]]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._busy_until = self._next_beside = 0.0

    async def enter(self, batch: Paced, gap: float = 0.0) -> None:
        """Wait for a turn; `leave` gives it back. Beside calls the next line has none for `gap` seconds."""
        if not self._waiting and self._may(batch):
            self._begin(batch, gap)
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((batch, gap, turn))
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave(batch)
            raise

    def leave(self, batch: Paced) -> None:
        """A line has ended, or waits."""
        self.running -= 1
        batch.running -= 1
        self._admit()

    def close(self) -> None:
        """Look at nobody any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _begin(self, batch: Paced, gap: float) -> None:
        self.running += 1
        batch.running += 1
        self._next_beside = asyncio.get_running_loop().time() + gap

    def _may(self, batch: Paced) -> bool:
        now = asyncio.get_running_loop().time()
        if self._busy():
            self._busy_until = now + BUSY_SECONDS
        most = self.lines
        if now < self._busy_until:
            most = max(1, self.lines // BESIDE) if now >= self._next_beside else 0
        return self.running < most and batch.running < max(1, int(batch.window)) and now >= batch.paused_until

    def _admit(self) -> None:
        kept = deque[tuple[Paced, float, asyncio.Future[None]]]()
        while self._waiting:
            batch, gap, turn = self._waiting.popleft()
            if turn.done():  # cancelled
                continue
            if self._may(batch):
                self._begin(batch, gap)
                turn.set_result(None)
            else:
                kept.append((batch, gap, turn))
        self._waiting = kept
        if kept and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look)

    def _look(self) -> None:
        self._timer = None
        self._admit()
