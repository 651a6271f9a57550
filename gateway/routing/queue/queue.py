"""A route's queue: who waits while all targets are full, for how long at most, and who goes when there is room."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from itertools import chain, islice
from typing import Final, Generic, TypeVar, get_args

from gateway.core.errors import QueueFull, QueueTimeout
from gateway.core.types import Rank
from gateway.routing.queue.fairness import Turns
from gateway.routing.queue.waiter import Place, Waiter

__all__ = ["Queue", "Waiter"]

T = TypeVar("T")

PRIORITIES: Final[tuple[Rank, ...]] = get_args(Rank)
"""The first goes first."""
OUTPUT_WEIGHT: Final = 2
"""An output token counts as two of the prompt."""
LOOK: Final = 16
"""So many are tried when there is room: the first may fit only a target that has none."""
RETRY_AFTER: Final = (1.0, 120.0)
"""The least and the most that a refused client is told to wait, in seconds."""
UNKNOWN_SECONDS: Final = 10.0
"""What it is told while nothing has been placed yet."""

MEMORY_SECONDS: Final = 20.0
"""After so long a call counts 1/e."""
AT_ONCE_SECONDS: Final = 0.02
"""What is placed so soon after others counts as placed with them: at most a thousandth more."""

_FULL = "All targets of this model are busy, and its queue is full."
_LATE = "All targets of this model are busy, and stayed so for as long as a call may wait."


class Queue(Generic[T]):
    """Bounded by calls and bytes. Higher priorities go first; tenants of one priority share by tokens (`Turns`); a
    tenant's calls go in the order in which they came. `T` is what a call gets when it is its turn.

    A full queue takes a call that goes before others by pushing one of these out: of the lowest priority the newest
    call of the tenant with the longest line, if it is of a lower priority than the one that comes, or its tenant would
    still have the longer line.
    """

    def __init__(
        self,
        *,
        calls: int,
        size: int,
        clock: Callable[[], float],
        changed: Callable[[int, int], None] = lambda calls, size: None,
    ) -> None:
        """At most `calls` of `size` bytes together; `clock` is monotonic; `changed` is told both when they change."""
        self._calls, self._size, self._clock, self._changed = calls, size, clock, changed
        self._classes: dict[Rank, Turns[Place[T]]] = {each: Turns() for each in PRIORITIES}
        self._bytes = 0
        self.waiting = 0
        """Calls that wait."""
        self._trying = self._stirred = False
        self._drain = Drain()

    def revise(self, calls: int, size: int) -> None:
        """Other bounds hold for calls that come from now on."""
        self._calls, self._size = calls, size

    @property
    def bytes(self) -> int:
        """What they hold in memory."""
        return self._bytes

    def placed(self, waiter: Waiter, now: float) -> None:
        """A call that came while nobody waits is placed at once: the short way of `place`."""
        self._classes[waiter.priority].charge(waiter.tenant, waiter.tokens)
        waiter.charged += waiter.tokens
        self._drain.count(now)

    async def place(
        self,
        waiter: Waiter,
        attempt: Callable[[], T | None],
        release: Callable[[T], None],
        seconds: float,
        *,
        again: bool = False,
        soonest: Callable[[], float | None] = lambda: None,
    ) -> T:
        """What `attempt` returns as soon as it is the waiter's turn and it returns something, within `seconds`.

        `attempt` takes what it returns; `release` gives it back when the caller was cancelled before it could learn of
        it. `again` is for what was got and turned out to be of no use: it was nothing, and the waiter is first in its
        tenant's line, with its first deadline. `soonest` tells in how many seconds any target can have room, if known.

        Raises `QueueFull`, `QueueTimeout`, and whatever `attempt` raises.
        """
        now = self._clock()
        if again:
            self._not_placed(waiter)
        if not again or waiter.deadline is None:
            waiter.deadline = now + seconds
        if goes := not self._before(waiter):
            got = self._tried_first(attempt)
            if got is not None:
                self.placed(waiter, now)
                return got
        wait, left = soonest(), waiter.deadline - now
        if left <= 0 or (wait is not None and wait > left):
            raise QueueTimeout(_LATE, retry_after=self._retry_after(waiter) if wait is None else _told(wait))
        place = Place(waiter, attempt, soonest)
        self._join(place, left, again)
        if not goes and place in self._next():  # those before may wait for a target that this one does not need
            self.freed()
        return await self._outcome(place, release)

    def freed(self) -> None:
        """There may be room: place those whose turn it is. Costs nothing while nobody waits."""
        if self._trying:
            self._stirred = True
            return
        while any(map(self._settled, self._next())):
            pass

    def freed_all(self) -> None:
        """What calls wait for is not scarce, and some may be able to go: ask each, by priority."""
        for place in [place for turns in self._classes.values() for place in turns.all()]:
            self._settled(place)

    def spent(self, waiter: Waiter, input: int, output: int) -> None:
        """The call has ended, and really took so many tokens: they are charged instead of the estimates.

        To be told of every call that was placed, once or more often: only what was charged since is taken back.
        """
        real = input + OUTPUT_WEIGHT * output
        self._classes[waiter.priority].correct(waiter.tenant, real - waiter.charged)
        waiter.charged = 0

    def _next(self) -> list[Place[T]]:
        """Whose turn it is, and whom to try when that one cannot go."""
        lines = (turns.next(LOOK) for turns in self._classes.values() if turns.waiting)
        return list(islice(chain.from_iterable(lines), LOOK))

    def _settled(self, place: Place[T]) -> bool:
        """Whether the waiter needs no more waiting: it is placed, or gone, or its attempt failed for good."""
        if place.future.done():  # cancelled in this very turn of the loop
            self._leave(place)
            return True
        try:
            got = self._tried(place.attempt)
        except Exception as error:
            self._leave(place)
            # A future does not take this one; a generator in the attempt has run out.
            place.future.set_exception(RuntimeError(error) if isinstance(error, StopIteration) else error)
            return True
        if got is None:
            return False
        self.placed(place.waiter, self._clock())
        self._leave(place)
        place.future.set_result(got)
        return True

    def _tried(self, attempt: Callable[[], T | None]) -> T | None:
        """What `attempt` says. One that itself gave something back is asked once more: that may be what it needs."""
        self._trying, self._stirred = True, False
        try:
            got = attempt()
            if got is None and self._stirred:
                got = attempt()
            return got
        finally:
            self._trying = False

    def _tried_first(self, attempt: Callable[[], T | None]) -> T | None:
        """As `_tried`, for a call that need not wait; what it gave back is for those who do."""
        try:
            return self._tried(attempt)
        finally:
            if self._stirred:
                self.freed()

    def _join(self, place: Place[T], seconds: float, again: bool) -> None:
        """Take a place in the queue, somebody else's if need be. Raises `QueueFull`."""
        waiter = place.waiter
        if self.waiting >= self._calls or self._bytes + waiter.size > self._size:
            victim = self._victim(waiter, again)
            if victim is None or self._bytes - victim.waiter.size + waiter.size > self._size:
                raise QueueFull(_FULL, retry_after=self._retry_after(waiter))
            self._leave(victim)
            victim.refuse(QueueFull(_FULL, retry_after=self._retry_after(victim.waiter)))
        place.timer = asyncio.get_running_loop().call_later(seconds, self._expire, place)
        self._classes[waiter.priority].join(waiter.tenant, place, first=again)
        self.waiting += 1
        self._bytes += waiter.size
        self._changed(self.waiting, self._bytes)

    def _victim(self, waiter: Waiter, again: bool) -> Place[T] | None:
        """Whom the waiter may push out."""
        for priority in reversed(PRIORITIES):
            turns = self._classes[priority]
            if priority == waiter.priority:
                fair = again or turns.longest() > turns.length(waiter.tenant) + 1
                return turns.newest() if turns.waiting and fair else None
            if turns.waiting:
                return turns.newest()
        return None

    async def _outcome(self, place: Place[T], release: Callable[[T], None]) -> T:
        future = place.future
        try:
            return await future
        except asyncio.CancelledError:
            if not future.done() or future.cancelled():
                self._abandon(place)
            elif future.exception() is None:  # it was placed, and will never know
                self._not_placed(place.waiter)
                try:
                    release(future.result())
                finally:
                    self.freed()
            raise

    def _expire(self, place: Place[T]) -> None:
        """The waiter's deadline has come."""
        later = max(self._retry_after(place.waiter), place.soonest() or 0.0)
        place.refuse(QueueTimeout(_LATE, retry_after=_told(later)))
        self._abandon(place)

    def _abandon(self, place: Place[T]) -> None:
        """The waiter will wait no longer; those who were behind it may fit where it did not."""
        in_the_way = place in self._next()
        self._leave(place)
        if in_the_way:
            self.freed()

    def _leave(self, place: Place[T]) -> None:
        waiter = place.waiter
        if self._classes[waiter.priority].leave(waiter.tenant, place):
            place.timer.cancel()
            self.waiting -= 1
            self._bytes -= waiter.size
            self._changed(self.waiting, self._bytes)

    def _not_placed(self, waiter: Waiter) -> None:
        """What the waiter got last was of no use."""
        undone = min(waiter.tokens, waiter.charged)
        self._classes[waiter.priority].correct(waiter.tenant, -undone)
        waiter.charged -= undone

    def _before(self, waiter: Waiter) -> int:
        """Calls that wait and go before one that comes now."""
        last = PRIORITIES.index(waiter.priority) + 1
        return sum(self._classes[priority].waiting for priority in PRIORITIES[:last])

    def _retry_after(self, waiter: Waiter) -> float:
        """Seconds after which the waiter would have its turn, as things went lately."""
        rate = self._drain.rate(self._clock())
        return _told((self._before(waiter) + 1) / rate if rate else UNKNOWN_SECONDS)


def _told(seconds: float) -> float:
    return min(max(RETRY_AFTER[0], seconds), RETRY_AFTER[1])


class Drain:
    """How fast a queue moves: calls placed a second, of which the older count less.

    An average that does not take a young measurement for a slow queue.
    """

    def __init__(self) -> None:
        self._began = self._at = -math.inf
        self._sum = 0.0

    def count(self, now: float) -> None:
        """One call more was placed, at `now` seconds."""
        if now - self._at < AT_ONCE_SECONDS:
            self._sum += 1.0
            return
        self._sum = 1.0 + self._left(now)
        if self._sum < 1.1:  # the first, or the first after a long time: it tells of no rate yet
            self._began = now
        self._at = now

    def rate(self, now: float) -> float:
        """Calls placed a second; 0 while there were none."""
        seen = -math.expm1(-max(1.0, now - self._began) / MEMORY_SECONDS)
        return self._left(now) / (MEMORY_SECONDS * seen)

    def _left(self, now: float) -> float:
        return self._sum * math.exp((self._at - now) / MEMORY_SECONDS)
