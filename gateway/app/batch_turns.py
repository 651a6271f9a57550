"""Which lines of batches may be asked now: few while others wait for answers, and as many of a batch as goes well."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

BESIDE: Final = 4
"""While calls that somebody waits for are under way, one of so many lines goes on beside them."""
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
        self._waiting: deque[tuple[Paced, asyncio.Future[None]]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._busy_until = 0.0

    async def enter(self, batch: Paced) -> None:
        """Wait for a turn; `leave` gives it back."""
        if not self._waiting and self._may(batch):
            self._begin(batch)
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((batch, turn))
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

    def _begin(self, batch: Paced) -> None:
        self.running += 1
        batch.running += 1

    def _may(self, batch: Paced) -> bool:
        now = asyncio.get_running_loop().time()
        if self._busy():
            self._busy_until = now + BUSY_SECONDS
        most = self.lines if now >= self._busy_until else max(1, self.lines // BESIDE)
        return self.running < most and batch.running < max(1, int(batch.window)) and now >= batch.paused_until

    def _admit(self) -> None:
        kept = deque[tuple[Paced, asyncio.Future[None]]]()
        while self._waiting:
            batch, turn = self._waiting.popleft()
            if turn.done():  # cancelled
                continue
            if self._may(batch):
                self._begin(batch)
                turn.set_result(None)
            else:
                kept.append((batch, turn))
        self._waiting = kept
        if kept and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look)

    def _look(self) -> None:
        self._timer = None
        self._admit()
