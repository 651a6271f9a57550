"""Asking the store for a lease on a call, and settling it when the call has ended, however it ended."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, Protocol

from msgspec import structs

from backends.api import Call
from gateway.core.errors import LimitsUnavailable, RateLimited
from gateway.core.types import Ask, Dimension, KeyRecord, Spent, Tenant, Verdict
from gateway.limits.estimate import Estimator
from gateway.limits.headers import Headers, denial, never_fits, rate_headers
from gateway.limits.plan import Planner, Rules, charged, units
from gateway.store import Store, StoreDown
from gateway.store.local.counters import Counters

log = logging.getLogger("trunkline.limits")

MAX_STALE: Final = 3
"""Times records may change under one call before it is told to come again."""
TOLD_SECONDS: Final = 1.0
"""How long the end of a call waits at most for the store to know that its slot is free; an outage is noticed sooner."""


class Caller(Protocol):
    """Whom the call is charged to."""

    @property
    def key(self) -> KeyRecord:
        """The key it came with."""

    @property
    def tenant(self) -> Tenant | None:
        """The key's tenant, if it has a record."""


class Pricing(Protocol):
    """What tokens cost."""

    @property
    def free(self) -> bool:
        """Nothing, ever."""

    def cost(self, input: int, cached: int, output: int) -> int:
        """Micro-units of money; `cached` is a part of `input`."""


class Lease:
    """What admission grants. Its end settles it, exactly once, however the call ended."""

    __slots__ = ("_ask", "_local", "_owner", "_verdict", "headers", "input")

    def __init__(self, owner: Admission, ask: Ask, verdict: Verdict, headers: Headers, input: int, local: bool) -> None:
        self._owner, self._ask, self._verdict, self._local = owner, ask, verdict, local
        self.headers, self.input = headers, input

    @property
    def at(self) -> float:
        """When the call was admitted, in seconds since the epoch."""
        return self._verdict.at / 1e6

    async def end(self, spent: Spent) -> None:
        """Settle, and where a slot is given back wait until the store knows, if it answers.

        A client that has the end of its answer may come again at once, to any gateway, and must find its slot free.
        """
        leased = any(dimension.kind == "lease" for dimension in self._ask.dimensions)
        told = self.settle(spent)
        if told is not None and leased:
            await asyncio.wait((told,), timeout=TOLD_SECONDS)

    def settle(self, spent: Spent) -> asyncio.Future[object] | None:
        """Turn what was reserved into what was spent, once; the future, if any, ends when the store knows."""
        ask, self._ask = self._ask, _NOTHING
        return None if ask is _NOTHING else self._owner.settle(ask, self._verdict.at, spent, self._local)


_NOTHING: Final = Ask("", (), ())


def _smaller(ask: Ask, verdict: Verdict, least: Spent) -> Ask | None:
    """The ask with what is left of the budget that denied it, or at least with what the call is sure to need.

    A call that does not bound its answer reserves what such answers took before. Were it refused for that, the rest of
    a budget could never be spent.
    """
    if verdict.denied is None:
        return None
    dimension, left = ask.dimensions[verdict.denied], verdict.standings[verdict.denied].remaining
    smallest = max(1, units(dimension, least))
    if dimension.kind != "budget" or dimension.amount <= smallest:
        return None
    amount = min(max(left, smallest), dimension.amount - 1)
    dimensions = list(ask.dimensions)
    dimensions[verdict.denied] = structs.replace(dimension, amount=amount)
    return structs.replace(ask, dimensions=tuple(dimensions))


class Admission:
    """Asks the store; while it is down, does for each limit what the limit says: share, closed or open."""

    def __init__(
        self,
        store: Store,
        rules: Rules | None = None,
        *,
        prices: Callable[[str], Pricing | None] = lambda _: None,
        gateways: int = 1,
        seconds: Callable[[float], None] = lambda _: None,
        denied: Callable[[str, str], None] = lambda scope, name: None,
        degraded: Callable[[bool], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._store, self._rules, self._prices = store, rules or Rules(), prices
        self._workers, self._seconds, self._denied = gateways, seconds, denied
        self._tell_degraded, self._clock, self._now = degraded, clock, now
        self._planner = Planner(self._rules)
        self._own = Counters(now)
        self.estimator = Estimator()
        self.degraded, self._changes = False, 0

    def revise(self, rules: Rules, prices: Callable[[str], Pricing | None]) -> None:
        """Other limits and prices hold for calls that come from now on."""
        self._rules, self._prices, self._planner = rules, prices, Planner(rules)

    async def admit(
        self,
        call: Call,
        caller: Caller,
        route: str,
        refresh: Callable[[], Awaitable[Caller]],
    ) -> Lease:
        """A lease. Raises `RateLimited`, `OutOfBudget`, `NeverFits`, `LimitsUnavailable`, and what `refresh` raises.

        `spent` will be asked, at the end, what the call really took. `refresh` looks at the caller again, after its
        records were found to have changed. A caller without limits is granted without asking the store.
        """
        estimator = self.estimator
        for _ in range(MAX_STALE):
            price = self._prices(route)
            priced = price is not None and not price.free
            plan = self._planner.plan(caller.key, caller.tenant, route, priced=priced)
            if not plan:
                verdict = Verdict(at=int(self._now() * 1e6))
                return Lease(self, _NOTHING, verdict, [], estimator.input(call, route), False)
            ask, input, least = self._ask(call, caller, route, plan, price)
            ask, verdict, local = await self._decide(ask)
            while (smaller := _smaller(ask, verdict, least)) is not None:
                ask, verdict, local = await self._decide(smaller)
            if not verdict.stale:
                break
            caller = await refresh()
        else:
            raise RateLimited("The key is being changed; try again.", retry_after=1)
        headers = rate_headers(ask.dimensions, verdict.standings, self._rules.ietf_headers, verdict.denied)
        if local:
            headers.append((b"x-trunkline-degraded", b"limits-local"))
        if verdict.denied is not None:
            error = denial(ask.dimensions, verdict, headers)
            self._denied(error.scope, error.dimension)
            raise error
        return Lease(self, ask, verdict, headers, input, local)

    def settle(self, ask: Ask, at: int, spent: Spent, local: bool) -> asyncio.Future[object] | None:
        """Turn what was reserved into what was spent; the future, if any, ends when the store knows."""
        used = [units(dimension, spent) for dimension in ask.dimensions]
        if not local:
            self._own.let_go(ask)
            return self._store.settle(ask, at, used)
        self._own.settle(ask, at, used)  # does nothing if a new outage has begun since
        owed = [(structs.replace(d, amount=0), u) for d, u in zip(ask.dimensions, used, strict=True) if u]
        if budgets := [pair for pair in owed if pair[0].kind == "budget"]:
            dimensions, used = tuple(d for d, _ in budgets), [u for _, u in budgets]
            self._store.owe(structs.replace(ask, dimensions=dimensions), at, used)
        return None

    def _ask(
        self, call: Call, caller: Caller, route: str, plan: tuple[Dimension, ...], price: Pricing | None
    ) -> tuple[Ask, int, Spent]:
        """What to ask for, the prompt's estimated tokens, and what the call takes at the very least."""
        key, tenant = caller.key, caller.tenant
        records = ((f"key:{key.id}", key.version), (f"tenant:{key.tenant}", tenant.version if tenant else 0))
        estimate = self.estimator.estimate(call, key.id, route)
        cost = 0 if price is None else price.cost(estimate.input, 0, estimate.output)
        input, output = estimate.least
        least = Spent(input, 0, output, 0 if price is None else price.cost(input, input, output))
        for dimension in plan:
            if units(dimension, least) > dimension.limit:
                raise never_fits(dimension)
        ask = Ask(call.id, records, charged(plan, Spent(estimate.input, 0, estimate.output, cost)))
        return ask, estimate.input, least

    async def _decide(self, ask: Ask) -> tuple[Ask, Verdict, bool]:
        """What was asked, the verdict, and whether this gateway reached it on its own."""
        started, changes = self._clock(), self._changes
        try:
            verdict = await self._store.admit(ask)
        except StoreDown as error:
            if changes == self._changes:  # what was asked before the last change tells nothing of the time after it
                self._degrade(error)
            alone = self._alone(ask)
            return alone, self._own.charge(alone), True
        finally:
            self._seconds(self._clock() - started)
        if changes == self._changes:
            self._recover()
        return ask, verdict, False

    def _alone(self, ask: Ask) -> Ask:
        """The same under what each limit says for an outage. A share is never less than one, or nobody could call."""
        gateways = max(self._workers, self._store.gateways)
        shares = []
        for dimension in ask.dimensions:
            if dimension.outage == "closed":
                what = f"{dimension.scope} {dimension.name}"
                raise LimitsUnavailable(f"The limit {what} cannot be checked at the moment; try again.", retry_after=1)
            if dimension.outage == "share":
                limit = max(1, dimension.limit // gateways)
                shares.append(structs.replace(dimension, limit=limit, amount=min(dimension.amount, limit)))
            else:
                shares.append(structs.replace(dimension, limit=1 << 52))
        return structs.replace(ask, dimensions=tuple(shares))

    async def look(self) -> None:
        """In an outage, see whether it is over: no call may come to find out."""
        if self.degraded:
            with suppress(StoreDown):
                await self._store.sound()
                self._recover()

    def _recover(self) -> None:
        if self.degraded:
            self.degraded, self._changes = False, self._changes + 1
            self._tell_degraded(False)
            log.warning("limits are shared again")

    def _degrade(self, error: StoreDown) -> None:
        if not self.degraded:
            self.degraded, self._changes = True, self._changes + 1
            self._tell_degraded(True)
            log.warning("limits are counted in this gateway only: %s", error)
            self._own = Counters(self._now)
            for ask in self._store.held():
                self._own.hold(ask)
