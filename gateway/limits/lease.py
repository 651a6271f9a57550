"""What admission grants a call, and how it is given back."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Any, Final, Protocol

from msgspec import Struct

from gateway.core.types import Ask, Spent
from gateway.limits.headers import Headers
from gateway.limits.plan import Terms
from gateway.store import Limits
from gateway.store.local.counters import Counters

log = logging.getLogger("trunkline.limits")

TOLD_SECONDS: Final = 1.0
"""How long the end of a call waits at most for the store to know that its slot is free; an outage is noticed sooner."""

Settled = asyncio.Future[Any]


class Owner(Protocol):
    """Who has granted a lease."""

    limits: Limits
    own: Counters
    waits: Waits

    def settle_alone(self, lease: Lease, used: list[int]) -> None:
        """Settle what was granted without the store."""


class Lease(Struct, eq=False):
    """A call is in. Its end settles it, once, however the call ended."""

    owner: Owner
    terms: Terms
    ask: Ask
    micros: int
    """When the call was admitted, in microseconds since the epoch."""
    input: int
    """Estimated tokens of its prompt."""
    headers: Headers
    """What its answer says of the limits."""
    local: bool = False
    """Granted without the store, by this gateway alone."""
    ended: bool = False

    @property
    def at(self) -> float:
        """When the call was admitted, in seconds since the epoch."""
        return self.micros / 1e6

    def settle(self, spent: Spent) -> Settled | None:
        """Turn what was reserved into what was spent. The first time counts; it never waits.

        The future ends when the store knows of it, in `StoreDown` if that will be later; None: nothing is to be known.
        """
        if self.ended:
            return None
        self.ended = True
        ask, terms, owner = self.ask, self.terms, self.owner
        if not ask.amounts:
            return None
        used = terms.used(spent)
        if self.local:
            owner.settle_alone(self, used)
            return None
        if owner.own.leases:  # since an outage began in which this call held slots
            owner.own.release_lease(ask)
        return owner.limits.settle(ask, self.micros, used)

    async def end(self, spent: Spent) -> None:
        """Settle, and where a slot is given back wait until the store knows, if it answers.

        A client that has the end of its answer may come again at once, to any gateway, and must find its slot free.
        """
        settled = self.settle(spent)
        if settled is not None and self.terms.leases:
            self.owner.waits.add(settled)
            try:
                await settled
            except Exception:
                log.debug("a slot is given back later", exc_info=True)  # never the call's failure


class Waits:
    """Ends what takes longer than `seconds`, with one timer for all of it."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._open: deque[tuple[float, Settled]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, waited: Settled) -> None:
        """Give this a result, None, if it has none in time."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + self._seconds
        self._open.append((ends, waited))
        if self._timer is None:
            self._timer = loop.call_at(ends, self._look)

    def _look(self) -> None:
        loop, self._timer = asyncio.get_running_loop(), None
        now = loop.time()
        while self._open:
            ends, waited = self._open[0]
            if not waited.done():
                if ends > now:
                    self._timer = loop.call_at(ends, self._look)
                    return
                waited.set_result(None)
            self._open.popleft()
