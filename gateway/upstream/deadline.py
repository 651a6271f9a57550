"""A time limit that moves with every piece of an answer, for the price of reading the clock."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self


class Deadline:
    """Like `asyncio.timeout`, whose limit costs two timer operations to move; this one looks again when it fires.

    Leaving the block after the limit has passed raises `TimeoutError`.
    """

    __slots__ = ("_before", "_due", "_expired", "_handle", "_idle", "_limit", "_loop", "_paused", "_paused_at", "_task")

    def __init__(self, first: float, idle: float) -> None:
        self._idle = idle
        self._loop = asyncio.get_running_loop()
        self._limit = self._loop.time() + first
        self._paused = self._expired = False

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None
        self._task, self._before = task, task.cancelling()
        self._look_at(self._limit)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.cancel()
        if self._expired and self._task.uncancel() <= self._before and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def pause(self) -> None:
        """We do not wait for the target now."""
        self._paused, self._paused_at = True, self._loop.time()

    def next_piece(self, *, alive: bool = True) -> None:
        """We wait for the next piece from now on; if what came was no sign of life, for what is left of the time."""
        if self._expired:  # the cancellation is on its way
            return
        self._paused, now = False, self._loop.time()
        self._limit = now + self._idle if alive else self._limit + now - self._paused_at
        if self._limit < self._due:  # only once: from the first piece's limit to the nearer one of the next
            self._handle.cancel()
            self._look_at(self._limit)

    def _look_at(self, due: float) -> None:
        self._due = due  # a handle of uvloop's does not know any more once it has fired
        self._handle = self._loop.call_at(due, self._look)

    def _look(self) -> None:
        now = self._loop.time()
        if self._paused or now < self._limit:
            self._look_at(now + self._idle if self._paused else self._limit)
        else:
            self._expired = True
            self._task.cancel()
