"""Who keeps sending wrong keys is not looked up any more for a while, by address and never by key."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from itertools import islice
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import Final

from gateway.core.clock import Clock
from gateway.core.errors import Throttled
from gateway.store.gcra import MICRO, step

FAILURES: Final = 20
"""Wrong keys that one source may send within a minute."""
WINDOW_SECONDS: Final = 60
MAX_SOURCES: Final = 10_000
_WINDOW: Final = WINDOW_SECONDS * MICRO
_IPV4: Final = bytes(10) + b"\xff\xff"
"""How an IPv6 address begins that is an IPv4 one."""


class Throttle:
    """Failed authentications of each source in a GCRA. Methods raise `Throttled` when there were too many.

    A look-up counts as a failure until it has ended otherwise; when nothing but unfinished look-ups is in the way, the
    next one waits for them. So many at once find out no more than one after another, and many good keys that come from
    one address at once all get in. `most` sources are remembered; `refused` is told each time that `Throttled` is
    raised.
    """

    def __init__(
        self,
        clock: Clock,
        failures: int = FAILURES,
        most: int = MAX_SOURCES,
        refused: Callable[[], object] = lambda: None,
    ) -> None:
        self._clock, self._failures, self._most, self._refused = clock, failures, most, refused
        self._sources: dict[str, Turn] = {}

    def failed(self, source: str | None, *, known: bool = False) -> None:
        """Count a failure that took no look-up. One with a `known` key's id is counted, but never refused here."""
        if source is None:
            return
        entry, now = self._entry(source), self._now()
        if not known and (over := self._over(entry, now, 1)) > 0:
            raise self._throttled(over)
        self._charge(entry, now)

    async def enter(self, source: str | None) -> Turn:
        """Wait for leave to look a key up. Whoever gets the turn ends it with `leave`, whatever happens."""
        if source is None:
            return Turn()
        entry = self._entry(source)
        while (over := self._over(entry, self._now(), entry.pending + 1)) > 0:
            if not entry.pending:
                entry.wake()
                raise self._throttled(over)
            waiter = asyncio.get_running_loop().create_future()
            entry.waiters.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter.done() and not waiter.cancelled():
                    entry.wake()  # it was this one's turn: the next one's then
                raise
        entry.pending += 1
        return entry

    def leave(self, turn: Turn, *, failed: bool) -> None:
        """End a turn, with what the look-up found out."""
        if failed:
            self._charge(turn, self._now())
        turn.pending -= 1
        turn.wake()

    def _now(self) -> int:
        return int(self._clock.monotonic() * MICRO)

    def _over(self, entry: Turn, now: int, amount: int) -> int:
        """Microseconds until so many more failures fit; 0 or less: they fit now."""
        return step(entry.tat, now, self._failures, _WINDOW, amount).over

    def _charge(self, entry: Turn, now: int) -> None:
        entry.tat = step(entry.tat, now, self._failures, _WINDOW, 1).tat

    def _entry(self, source: str) -> Turn:
        name = _bucket(source)
        entry = self._sources.pop(name, None)
        if entry is None:
            entry = Turn()
            self._forget()
        self._sources[name] = entry  # at the end: what was used last is forgotten last
        return entry

    def _forget(self) -> None:
        """Make room for one: forget a few idle sources, and when none is idle the one that was quiet the longest."""
        now = self._now()
        for name in list(islice(self._sources, 2)):
            entry = self._sources[name]
            if len(self._sources) >= self._most or (entry.tat <= now and not entry.pending):
                del self._sources[name]

    def _throttled(self, over: int) -> Throttled:
        self._refused()
        return Throttled(
            "Too many wrong API keys came from this address; a key that is not known here yet has to wait.",
            retry_after=over / MICRO,
        )


class Turn:
    """What is known of one source; holding it is a look-up's turn."""

    __slots__ = ("pending", "tat", "waiters")

    def __init__(self) -> None:
        self.tat = 0
        self.pending = 0
        self.waiters: deque[asyncio.Future[None]] = deque()

    def wake(self) -> None:
        """Let the next one that waits look again."""
        while self.waiters:
            waiter = self.waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return


def _bucket(source: str) -> str:
    """An IPv4 address, or the /64 that one holder of IPv6 addresses has at least."""
    if ":" not in source:
        return source
    try:
        packed = inet_pton(AF_INET6, source)
    except OSError:
        return source
    return inet_ntop(AF_INET, packed[12:]) if packed.startswith(_IPV4) else packed[:8].hex()
