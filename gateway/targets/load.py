"""What a target has to do: our own calls, counted as they come and go, and those that other gateways report."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from math import inf
from typing import Final

from msgspec import Struct

from gateway.store import FRESH_SECONDS

RATE: Final = 8000.0
"""Prompt tokens a second that a target is assumed to read, only to let what others reported grow old (routing rule)."""
STALE_SECONDS: Final = FRESH_SECONDS
"""A gateway that has reported nothing for so long is dead: its last report no longer counts."""
KNOWN_GATEWAYS: Final = 256
"""Workers that are remembered, those that were heard of last."""
SWEEP_SECONDS: Final = 0.025
"""How often is looked whose prompt must have been read by now."""
LEAST_CHARGE: Final = 16
"""Tokens; even a prompt that is all in the cache has its question read."""


class LoadReport(Struct, frozen=True, array_like=True):
    """What one gateway has at one target now, and all it ever charged. Gateways of other versions read it."""

    prefill: int
    waiting: int
    running: int
    charged: int


class Load:
    """One target's load as this gateway sees it. The same object for every route that lists the same server."""

    __slots__ = (
        "_known",
        "_reported_at",
        "_unseen",
        "changed",
        "charged",
        "clock",
        "freed",
        "half_full",
        "others_prefill",
        "others_running",
        "others_waiting",
        "prefill",
        "running",
        "waiting",
    )

    def __init__(self, unseen: Unseen | None = None) -> None:
        """`unseen` is the same for all servers of a gateway."""
        self._unseen = unseen or Unseen()
        self.prefill = 0
        """Prompt tokens, less those expected in the target's cache, of our calls that have no first token yet."""
        self.waiting = 0
        """Our calls without a first token."""
        self.running = 0
        """All our calls."""
        self.charged = 0
        """Prefill tokens ever charged by us."""
        self.others_prefill = self.others_waiting = self.others_running = 0
        self.clock = 0
        """Tokens sent to the target as far as we ever heard: never falls, and so tells how old its cache entries are.

        Local to this gateway: other gateways count from elsewhere.
        """
        self.freed: list[Callable[[Load], None]] = []
        """Called when something has ended here: there may be room."""
        self.changed: list[Callable[[], None]] = []
        """Called when there may be no room any more, or calls there have failed."""
        self.half_full = inf
        """Tokens: half of what fills the target that is full first. Below it nobody need ask whether there is room."""
        self._reported_at = 0.0
        self._known: dict[str, int] = {}

    def pending(self, now: float) -> float:
        """Prefill tokens outstanding at `now`, ours exactly, others' as they must have shrunk since they were reported.

        A target reads ours and theirs in turn, so their part of its rate is their part of what is pending.
        """
        theirs = self.others_prefill
        if not theirs:
            return self.prefill
        done = RATE * (now - self._reported_at) * theirs / (theirs + max(1, self.prefill))
        return self.prefill + max(0.0, theirs - done)

    def fills(self, prefill: float) -> None:
        """With so many tokens to read one of the server's targets is full."""
        if prefill / 2 < self.half_full:
            self.half_full = prefill / 2
            self.notify()

    def notify(self) -> None:
        """Call all of `changed`."""
        for changed in self.changed:
            changed()

    def apply(self, reports: Mapping[str, tuple[LoadReport, float]], now: float) -> None:
        """Replace what others reported: by gateway its report, and its age in seconds. Old ones do not count."""
        prefill = waiting = running = 0
        age = 0.0
        for gateway, (report, old) in reports.items():
            known = self._known.get(gateway)
            if known is not None:
                self.clock += max(0, report.charged - known)  # a restarted gateway begins at 0
            self._known.pop(gateway, None)
            self._known[gateway] = report.charged
            if old <= STALE_SECONDS:
                prefill += report.prefill
                waiting += report.waiting
                running += report.running
                age += old * report.prefill
        while len(self._known) > KNOWN_GATEWAYS:  # one that was only silent goes on where it was
            del self._known[next(iter(self._known))]
        self.others_prefill, self.others_waiting, self.others_running = prefill, waiting, running
        self._reported_at = now - (age / prefill if prefill else 0.0)
        if prefill:
            self.notify()

    def reads(self, share: Share) -> None:
        """The prompt will have been read when all that is pending here is, and that is all that will be known of it."""
        unseen, loop = self._unseen, asyncio.get_running_loop()
        unseen.shares[share] = loop.time() + self.prefill / RATE
        if not unseen.looking:
            unseen.look_later(loop)

    def report(self) -> LoadReport:
        """This gateway's own part, for the others."""
        return LoadReport(self.prefill, self.waiting, self.running, self.charged)


class Unseen:
    """Shares of whole answers, whose first token nobody sees: for each when its prompt will have been read."""

    def __init__(self) -> None:
        self.shares: dict[Share, float] = {}
        self.looking = False

    def look_later(self, loop: asyncio.AbstractEventLoop) -> None:
        """One timer for all servers: where there are hundreds, each call would else take one of its own."""
        self.looking = True
        loop.call_later(SWEEP_SECONDS, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for share in [share for share, until in self.shares.items() if until <= now]:
            share.first_token()
        self.looking = False
        if self.shares:
            self.look_later(loop)


class Share:
    """One call's part of a target's load: the prefill part ends at the first token, the rest at the end, each once."""

    __slots__ = ("_charged", "_load", "_prefill", "_running")

    def __init__(self, load: Load, prefill: int) -> None:
        self._load, self._prefill, self._running = load, max(LEAST_CHARGE, prefill), True
        self._charged = self._prefill
        before = load.prefill
        load.prefill += self._prefill
        load.charged += self._prefill
        load.clock += self._prefill
        load.waiting += 1
        load.running += 1
        if before < load.half_full <= load.prefill:
            load.notify()

    def first_token(self) -> None:
        """The prompt has been read."""
        if self._prefill:
            load = self._load
            load.prefill -= self._prefill
            load.waiting -= 1
            self._prefill = 0
            load._unseen.shares.pop(self, None)
            for freed in load.freed:
                freed(load)

    def read(self, tokens: int) -> None:
        """So many tokens of the prompt were not cached: the target's cache has turned over by so many, not by ours."""
        more = tokens - self._charged
        if more > 0:
            self._load.clock += more
            self._load.charged += more
            self._charged = tokens

    def undo(self) -> None:
        """The call has not gone there after all."""
        if self._prefill:
            self._load.charged -= self._prefill
            self._load.clock -= self._prefill
        self.end()

    def end(self) -> None:
        """The call is over, however it ended."""
        if self._running:
            if self._prefill:
                self.first_token()
            self._load.running -= 1
            self._running = False
            for freed in self._load.freed:
                freed(self._load)
