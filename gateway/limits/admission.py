"""Asking the store for a lease on a call, and giving it back; deciding without the store while it is down."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Final

from msgspec import Struct, structs

from backends.api import Call
from gateway.config.limits import Price
from gateway.core.errors import LimitReached, LimitsUnavailable, RateLimited
from gateway.core.types import Ask, Caller, Plan, Spent, Verdict
from gateway.limits.denials import Denial, Denials, lasting
from gateway.limits.estimate import Estimator
from gateway.limits.headers import Headers, RateHeaders, denial
from gateway.limits.plan import NO_PRICES, Planner, Rules, Terms
from gateway.store import NotAllowed, Store, StoreDown
from gateway.store.local.counters import Counters

log = logging.getLogger("trunkline.limits")

MAX_STALE: Final = 3
"""Times records may change under one call before it is told to come again."""
DEGRADED: Final = (b"x-trunkline-degraded", b"limits-local")
"""Tells a client that this gateway has decided alone."""
TOLD_SECONDS: Final = 1.0
"""How long the end of a call waits at most for the store to know that its slot is free; an outage is noticed sooner."""

Settled = asyncio.Future[Any]


class AdmissionEvents:
    """Told of what admission does, for metrics; the methods must not raise."""

    def answered(self, seconds: float) -> None:
        """The store has decided about a call."""

    def denied(self, scope: str, dimension: str) -> None:
        """A call was refused by this limit."""

    def degraded(self, alone: bool) -> None:
        """This gateway decides alone from now on, or no longer."""


class Admission:
    """Asks the store; while it is down, does for each limit what the limit says: share, closed or open."""

    def __init__(
        self,
        store: Store,
        rules: Rules | None = None,
        *,
        prices: Mapping[str, Price | None] = NO_PRICES,
        gateways: int = 1,
        events: AdmissionEvents | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._store, self.limits = store, store.limits
        self._workers, self._events = gateways, events or AdmissionEvents()
        self._clock, self._now = clock, now
        self._planner = Planner(rules or Rules(), prices)
        self.denials = Denials()
        """Of keys no call of which can be admitted for a while."""
        self.own = Counters(now)
        """What this gateway counts alone."""
        self.estimator = Estimator()
        self.waits = Waits(TOLD_SECONDS)
        self.degraded, self._changes, self._not_allowed = False, 0, False

    def revise(self, rules: Rules, prices: Mapping[str, Price | None]) -> None:
        """Other limits and prices hold for calls that come from now on."""
        self._planner = Planner(rules, prices)
        self.denials.clear()

    async def admit(
        self, call: Call, caller: Caller, route: str, refresh: Callable[[], Awaitable[tuple[Caller, Call]]]
    ) -> Lease:
        """A lease. Raises `RateLimited`, `OutOfBudget`, `NeverFits`, `LimitsUnavailable`, and what `refresh` raises.

        `refresh` looks at the caller, and at what it may ask, again, after its records were found to have changed. A
        caller without limits is granted without asking the store.
        """
        for _ in range(MAX_STALE):
            planner = self._planner
            terms = planner.terms(caller.key, caller.tenant, route)
            estimate = self.estimator.estimate(call, caller.key.id, route)
            if not terms.plan.dimensions:
                ask = Ask(call.id, terms.plan, ())
                return Lease(self, terms, ask, int(self._now() * 1e6), estimate.input, [])
            ask = terms.ask(call.id, estimate)
            while True:
                started, changes, local = self._clock(), self._changes, False
                try:
                    verdict = await self.limits.admit(ask)
                except StoreDown as error:
                    ask, local = self._alone(ask, error, changes), True
                    verdict = self.own.charge(ask)
                else:
                    if self.degraded and changes == self._changes:
                        self._recover()
                finally:
                    self._events.answered(self._clock() - started)
                if verdict.denied is None:
                    break
                smaller = terms.smaller(ask, verdict, estimate)
                if smaller is None:
                    told = not local and changes == self._changes and planner is self._planner
                    self._remember(caller, lasting(terms, ask, verdict, started, all_cost=planner.all_cost), told)
                    raise self._denial(terms, ask, verdict, local)
                ask = smaller
            if not verdict.stale:
                headers = terms.headers.of(verdict.standings) if not local else self._local_headers(terms, ask, verdict)
                return Lease(self, terms, ask, verdict.at, estimate.input, headers, local)
            caller, call = await refresh()
        raise RateLimited("The key is being changed; try again.", retry_after=1)

    def deny_again(self, caller: Caller) -> None:
        """Raise `RateLimited` or `OutOfBudget` for a caller that was denied, and surely would be now.

        The caller is as the store has it at this moment: its limits may have been raised.
        """
        denial, now = self.denials.pop(caller.key.id, None), self._clock()
        if denial is not None and denial.holds(caller, now):
            self.denials[caller.key.id] = denial
            raise self._denial(denial.terms, denial.ask, denial.at(now), local=False)

    def _remember(self, caller: Caller, denial: Denial | None, told: bool) -> None:
        """Keep a denial that lasts, if the store `told` it under the limits that are still in force."""
        if denial is not None and told:
            self.denials.remember(caller.key.id, denial)

    def settle_alone(self, lease: Lease, used: list[int]) -> None:
        """Settle what this gateway has granted alone: here, and budgets in the store too as soon as it answers."""
        ask, at = lease.ask, lease.micros
        self.own.settle(ask, at, used)  # does nothing if a new outage has begun since
        budgets = [i for i, dimension in enumerate(ask.plan.dimensions) if dimension.kind == "budget" and used[i]]
        if budgets:
            plan = Plan(ask.plan.records, tuple(ask.plan.dimensions[i] for i in budgets))
            self.limits.charge_later(Ask(ask.call_id, plan, [0] * len(budgets)), at, [used[i] for i in budgets])

    def _local_headers(self, terms: Terms, ask: Ask, verdict: Verdict) -> list[tuple[bytes, bytes]]:
        """Those of what was decided alone, under limits of its own."""
        headers = RateHeaders(ask.plan.dimensions, terms.headers.ietf).of(verdict.standings, verdict.denied)
        return [*headers, DEGRADED]

    def _denial(self, terms: Terms, ask: Ask, verdict: Verdict, local: bool) -> LimitReached:
        if local:
            headers = self._local_headers(terms, ask, verdict)
        else:
            headers = terms.headers.of(verdict.standings, verdict.denied)
        error = denial(ask, verdict, headers)
        self._events.denied(error.scope, error.dimension)
        return error

    def _alone(self, ask: Ask, error: StoreDown, changes: int) -> Ask:
        """The same under what each limit says for an outage. A share is never less than one, or nobody could call."""
        if changes == self._changes:  # what was asked before the last change tells nothing of the time after it
            self._degrade(error)
        gateways = max(self._workers, self._store.gateways)
        shares, amounts = [], []
        for dimension, amount in zip(ask.plan.dimensions, ask.amounts, strict=True):
            if dimension.outage == "closed":
                what = f"{dimension.scope} {dimension.name}"
                raise LimitsUnavailable(f"The limit {what} cannot be checked at the moment; try again.", retry_after=1)
            limit = max(1, dimension.limit // gateways) if dimension.outage == "share" else 1 << 52
            shares.append(structs.replace(dimension, limit=limit))
            amounts.append(min(amount, limit))
        return Ask(ask.call_id, Plan(ask.plan.records, tuple(shares)), amounts)

    async def look(self) -> None:
        """In an outage, see whether it is over: no call may come to find out.

        Only a call finds out whether the store allows now what it did not.
        """
        if self.degraded and not self._not_allowed:
            with suppress(StoreDown):
                await self._store.verify()
                self._recover()

    def _recover(self) -> None:
        if self.degraded:
            self.degraded, self._changes = False, self._changes + 1
            self._events.degraded(False)
            log.warning("limits are shared again")

    def _degrade(self, error: StoreDown) -> None:
        if not self.degraded:
            self.degraded, self._changes = True, self._changes + 1
            self._not_allowed = isinstance(error, NotAllowed)
            self._events.degraded(True)
            self.denials.clear()
            log.warning("limits are counted in this gateway only: %s", error)
            self.own = Counters(self._now)
            for ask in self.limits.open_leases():
                self.own.register_lease(ask)


class Lease(Struct, eq=False):
    """A call is in. Its end settles it, once, however the call ended."""

    owner: Admission
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
