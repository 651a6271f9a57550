"""A time-out that counts the server's time and not our own: for answers that we may be too busy to read."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

TURN_SECONDS = 0.025
"""What one turn of the clock counts, however late it comes: what is above it, this loop spent on other work."""
LATE_SHARE = 0.5
"""What is counted of a turn that comes a whole turn late: where we do not get our time, a server beside us may not
either. More than nothing, or a server that is gone would never be noticed by a loop that is always busy."""
SLOW_SHARE = 0.4
"""An answer that takes this part of the time-out is slow. Three in a row that add up to `SLOW_SECONDS` are an outage: a
store that delays every call is worse than none."""
SLOW_ANSWERS, SLOW_SECONDS = 3, 0.5
MOST_TIMEOUTS = 4
"""Time-outs that one question may stay open although others before it are answered."""


class Patience:
    """Watches many questions, which are answered in turn, for the time-out, with one timer for all of them.

    When hundreds of calls arrive at once, this loop is behind by more than the time-out, and so may be the server with
    its work. Taking that for an outage would turn every burst into one. Hence an outage is when nothing at all is
    answered for so long: each answer starts the time anew.
    """

    def __init__(
        self,
        seconds: float,
        oldest: Callable[[], float | None],
        arrived: Callable[[], bool],
        over: Callable[[Exception], None],
    ) -> None:
        """`oldest` tells when the oldest open question was asked, as `began` said; `over` is told that it is over.

        `arrived` tells whether answers lie unread: then nothing is said before they are read.
        """
        self.slow = seconds * SLOW_SHARE
        self._seconds, self._oldest, self._arrived, self._over = seconds, oldest, arrived, over
        self._clock = self._answered = 0.0
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._slow_since, self._slow_answers, self._slow_seconds = -1.0, 0, 0.0

    def began(self) -> float:
        """A question is asked now; returns when that is."""
        if self._timer is None:
            self._wait(asyncio.get_running_loop())
        return self._clock

    def ended(self, began: float, *, queued: bool = False) -> None:
        """The question of that time has been answered; `queued`: behind so many that they were most of its wait."""
        taken = self._clock - (max(began, self._answered) if queued else began)
        self._answered = self._clock
        if taken < self.slow - TURN_SECONDS / 100:  # sums of turns are not exact
            self._slow_answers, self._slow_seconds = 0, 0.0
        elif began != self._slow_since:  # those asked together were slow together
            self._slow_since = began
            self._slow_answers, self._slow_seconds = self._slow_answers + 1, self._slow_seconds + taken
            if self._slow_answers >= SLOW_ANSWERS and self._slow_seconds >= SLOW_SECONDS:
                self._slow_answers, self._slow_seconds = 0, 0.0
                self._over(TimeoutError("answers are slow"))

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due = loop.time() + TURN_SECONDS
        self._timer = loop.call_at(self._due, self._tick)

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        late = loop.time() - self._due >= TURN_SECONDS
        self._clock += TURN_SECONDS * (LATE_SHARE if late else 1)
        if self._oldest() is None:
            self._timer = None
            return
        self._wait(loop)
        if self._is_over():  # one more turn of the loop: sockets are read after timers
            loop.call_soon(loop.call_soon, self._check)

    def _check(self) -> None:
        if self._is_over() and not self._arrived():
            self._over(TimeoutError("no answer in time"))

    def _is_over(self) -> bool:
        oldest = self._oldest()
        if oldest is None:
            return False
        silent = self._clock - max(oldest, self._answered)
        return silent > self._seconds or self._clock - oldest > MOST_TIMEOUTS * self._seconds


async def in_time(work: Awaitable[T], seconds: float) -> T:
    """What this comes to; raises `TimeoutError` when it takes so long, counted in turns as above."""
    task = asyncio.ensure_future(work)
    try:
        for _ in range(max(1, round(seconds / TURN_SECONDS))):
            await asyncio.wait([task], timeout=TURN_SECONDS)
            if task.done():
                return task.result()
        raise TimeoutError
    finally:
        task.cancel()
