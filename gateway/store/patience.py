"""A time-out that counts the server's time and not our own: for answers that we may be too busy to read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

TURN_SECONDS = 0.025
"""What one turn of the clock counts, however late it comes: what is above it, this loop spent on other work."""
SLOW_SHARE = 0.4
"""An answer that takes this part of the time-out is slow. Three in a row that add up to `SLOW_SECONDS` are an outage: a
store that delays every call is worse than none."""
SLOW_ANSWERS, SLOW_SECONDS = 3, 0.5


class Patience:
    """Watches the oldest of many questions for the time-out, with one timer for all of them.

    When hundreds of calls arrive in one turn of the loop, it is behind by more than the time-out although the answers
    have been here all the while. Taking that for an outage would turn every burst into one.
    """

    def __init__(self, seconds: float, oldest: Callable[[], int | None], over: Callable[[Exception], None]) -> None:
        """`oldest` tells the turn in which the oldest open question was asked; `over` is told that it took too long."""
        self.slow = seconds * SLOW_SHARE
        self._most, self._oldest, self._over = max(1, round(seconds / TURN_SECONDS)), oldest, over
        self._turn = 0
        self._timer: asyncio.TimerHandle | None = None
        self._slow_turn, self._slow_answers, self._slow_seconds = -1, 0, 0.0

    def began(self) -> int:
        """A question is asked now; returns the turn."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TURN_SECONDS, self._tick)
        return self._turn

    def ended(self, turn: int) -> None:
        """The question of that turn has been answered."""
        taken = (self._turn - turn) * TURN_SECONDS
        if taken < self.slow:
            self._slow_answers, self._slow_seconds = 0, 0.0
        elif turn != self._slow_turn:  # those asked together were slow together
            self._slow_turn = turn
            self._slow_answers, self._slow_seconds = self._slow_answers + 1, self._slow_seconds + taken
            if self._slow_answers >= SLOW_ANSWERS and self._slow_seconds >= SLOW_SECONDS:
                self._slow_answers, self._slow_seconds = 0, 0.0
                self._over(TimeoutError("answers are slow"))

    def _tick(self) -> None:
        self._turn += 1
        oldest = self._oldest()
        if oldest is None:
            self._timer = None
            return
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(TURN_SECONDS, self._tick)
        if self._turn - oldest > self._most:  # one more turn of the loop: sockets are read after timers
            loop.call_soon(loop.call_soon, self._check)

    def _check(self) -> None:
        oldest = self._oldest()
        if oldest is not None and self._turn - oldest > self._most:
            self._over(TimeoutError("no answer in time"))
