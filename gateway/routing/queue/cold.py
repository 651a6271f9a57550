"""Where calls wait for targets that are not there: that start, start anew, or sleep."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from gateway.core.errors import NoTarget, QueueFull, QueueTimeout
from gateway.routing.queue.events import QueueEvents
from gateway.routing.queue.queue import Queue, Waiter

LOOK_SECONDS: Final = 0.05
"""How often it is looked whether a target is up while calls are held."""
PART: Final = 20.0
"""Looking at thousands of targets takes longer: a twentieth of the time at most."""
RETRY_SECONDS: Final = 5.0
"""What a client is told to wait whose call was held in vain."""


class HeldCalls:
    """The held calls of the route `name`. Their order and their bounds are those of a queue of their own."""

    def __init__(
        self,
        name: str,
        queue: Queue[bool],
        clock: Callable[[], float],
        events: QueueEvents,
    ) -> None:
        """`events` are told of each call how its waiting ended; `clock` is monotonic."""
        self.name, self._queue, self._clock, self._events = name, queue, clock, events
        self._looking: asyncio.TimerHandle | None = None

    @property
    def calls(self) -> int:
        """Calls that are held now."""
        return self._queue.waiting

    def revise(self, calls: int, size: int) -> None:
        """Other bounds hold for calls that come from now on."""
        self._queue.revise(calls, size)

    async def wait(self, waiter: Waiter, is_up: Callable[[], bool], seconds: float) -> None:
        """Return when `is_up`, which is asked now and then. Raises `NoTarget` after so many seconds, at once when
        as many calls are held as may be, and whatever `is_up` raises."""
        began, outcome = self._clock(), "gone"
        self._look_again()
        try:
            await self._queue.place(waiter, lambda: is_up() or None, lambda _: None, seconds)
            outcome = "up"
        except QueueTimeout as error:
            outcome = "expired"
            raise self._in_vain("none has come up for as long as a call may wait for that") from error
        except QueueFull as error:
            outcome = "refused"
            raise self._in_vain("no more calls may wait until one is up") from error
        except NoTarget:  # what it waited for was taken away
            outcome = "refused"
            raise
        finally:
            self._events.hold_ended(self.name, outcome, self._clock() - began)

    def _in_vain(self, why: str) -> NoTarget:
        return NoTarget(f"No target of {self.name!r} is up, and {why}.", retry_after=RETRY_SECONDS)

    def _look_again(self, least: float = 0.0) -> None:
        if self._looking is None:
            self._looking = asyncio.get_running_loop().call_later(max(LOOK_SECONDS, least), self._look)

    def _look(self) -> None:
        self._looking = None
        if self.calls:
            began = self._clock()
            self._queue.freed_all()
            self._look_again(PART * (self._clock() - began))
