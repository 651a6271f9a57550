"""A time-out that counts the server's time and not our own: for answers that we may be too busy to read."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

TURN_SECONDS = 0.025
"""What one turn of the clock counts, however late it comes: what is above it, this loop spent on other work."""
SLOW_SHARE = 0.4
"""An answer that takes this part of the time-out is slow. Three in a row that add up to `SLOW_SECONDS` are an outage: a
store that delays every call is worse than none."""
SLOW_ANSWERS, SLOW_SECONDS = 3, 0.5
MOST_TIMEOUTS = 4
"""Time-outs that one question may stay open although others before it are answered."""


class AnswerTimer:
    """Watches many questions, which are answered in turn, for the time-out, with one timer for all of them.

    When hundreds of calls arrive at once, this loop is behind by more than the time-out, and so may be the server with
    its work. Taking that for an outage would turn every burst into one. Hence an outage is when nothing at all is
    answered for so long: each answer starts the time anew.
    """

    def __init__(
        self,
        seconds: float,
        oldest: Callable[[], int | None],
        arrived: Callable[[], bool],
        over: Callable[[Exception], None],
    ) -> None:
        """`oldest` tells the turn in which the oldest open question was asked; `over` is told that it is over.

        `arrived` tells whether something lies unread: then nothing is said before it is read.
        """
        self.slow = seconds * SLOW_SHARE
        self._most, self._oldest, self._arrived, self._over = _turns(seconds), oldest, arrived, over
        self.turn = self.answered = 0
        self.running = False
        """The clock runs: while it does, a question that is asked now belongs to `turn`."""
        self._slow_turn, self.slow_answers, self._slow_seconds = -1, 0, 0.0

    def began(self) -> int:
        """A question is asked now; returns the turn."""
        if not self.running:
            self.running = True
            asyncio.get_running_loop().call_later(TURN_SECONDS, self._tick)
        return self.turn

    def ended(self, turn: int, *, queued: bool = False) -> None:
        """The question of that turn has been answered; `queued`: behind so many that they were most of its wait."""
        taken = (self.turn - (max(turn, self.answered) if queued else turn)) * TURN_SECONDS
        self.answered = self.turn
        if taken < self.slow:
            self.slow_answers, self._slow_seconds = 0, 0.0
        elif turn != self._slow_turn:  # those asked together were slow together
            self._slow_turn = turn
            self.slow_answers, self._slow_seconds = self.slow_answers + 1, self._slow_seconds + taken
            if self.slow_answers >= SLOW_ANSWERS and self._slow_seconds >= SLOW_SECONDS:
                self.slow_answers, self._slow_seconds = 0, 0.0
                self._over(TimeoutError("answers are slow"))

    def _tick(self) -> None:
        self.turn += 1
        oldest = self._oldest()
        if oldest is None:
            self.running = False
            return
        asyncio.get_running_loop().call_later(TURN_SECONDS, self._tick)
        silent = self.turn - max(oldest, self.answered)
        if (silent > self._most or self.turn - oldest > MOST_TIMEOUTS * self._most) and not self._arrived():
            self._over(TimeoutError("no answer in time"))


async def in_time(work: Awaitable[T], seconds: float) -> T:
    """What this comes to; raises `TimeoutError` when it takes so long, counted in turns as above."""
    task = asyncio.ensure_future(work)
    try:
        for _ in range(_turns(seconds)):
            await asyncio.wait([task], timeout=TURN_SECONDS)
            if task.done():
                return task.result()
        raise TimeoutError
    finally:
        task.cancel()


def _turns(seconds: float) -> int:
    return max(1, round(seconds / TURN_SECONDS))
