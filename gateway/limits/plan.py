"""Which dimensions a call is checked against: those of its key, its tenant, its model, and its key on its model."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from operator import gt
from typing import Final, get_args

from msgspec import Struct

from gateway.config.limits import Price
from gateway.core.dimensions import BUDGET, COUNTED
from gateway.core.errors import NeverFits
from gateway.core.types import Ask, Dimension, KeyRecord, Limit, Outage, Period, Plan, Spent, Tenant, Verdict
from gateway.limits.estimate import Estimate
from gateway.limits.headers import RateHeaders, never_fits
from gateway.store import LEASE_SECONDS
from gateway.store.rebuild import budget_key

MINUTE: Final = 60.0
MAX_TERMS: Final = 20_000

UNITS: Final = ("requests", "calls", "tokens", "input", "output", "cost")
"""What dimensions count: what a call takes is listed in this order."""
HUGE: Final = 1 << 62


class Rules(Struct, frozen=True):
    """The limits that the table sets; records of keys and tenants say more."""

    key: Limit = Limit()
    """Of each key."""
    tenant: Limit = Limit()
    """Of each tenant."""
    models: dict[str, Limit] = {}
    """Of each route as a whole."""
    key_models: dict[str, Limit] = {}
    """Of each key on each route."""
    ietf_headers: bool = False


class Terms:
    """What calls of one key on one route are admitted under: all that does not differ from call to call.

    `price` is what money is counted by; None: no dimension counts money.
    """

    __slots__ = ("_fits", "_limits", "_price", "_smallest", "_units", "headers", "leases", "plan")

    def __init__(self, plan: Plan, price: Price | None = None, *, ietf: bool = False) -> None:
        dimensions = plan.dimensions
        self.plan = plan
        self.headers = RateHeaders(dimensions, ietf)
        self.leases = any(dimension.kind == "lease" for dimension in dimensions)
        """A call holds slots, which are given back when it ends."""
        self._price = price if any(dimension.unit == "cost" for dimension in dimensions) else None
        self._units = [UNITS.index(dimension.unit) for dimension in dimensions]
        self._limits = [dimension.limit for dimension in dimensions]
        self._smallest = [min((d.limit for d in dimensions if d.unit == unit), default=HUGE) for unit in UNITS]
        self._fits = min(self._smallest[2:5]) if min(self._smallest[:2]) > 0 else -1
        """Tokens with which every call fits, as far as calls and tokens are counted."""

    def ask(self, call_id: str, estimate: Estimate) -> Ask:
        """What to reserve: never more of a dimension than it can hold, as an estimate may be wrong.

        Raises `NeverFits` for what is larger than a dimension at the very least.
        """
        input, output, price = estimate.input, estimate.output, self._price
        least_input, least_output = estimate.least
        least = least_input + least_output
        if least > self._fits and any(map(gt, (1, 1, least, least_input, least_output), self._smallest)):
            raise self._never_fits(estimate)
        if price is not None and price.cost(least_input, least_input, least_output) > self._smallest[5]:
            raise self._never_fits(estimate)
        taken = (1, 1, input + output, input, output, 0 if price is None else price.cost(input, 0, output))
        return Ask(call_id, self.plan, [*map(min, map(taken.__getitem__, self._units), self._limits)])

    def smaller(self, ask: Ask, verdict: Verdict, estimate: Estimate) -> Ask | None:
        """The ask with what is left of the budget that denied it, or at least with what the call is sure to need.

        A call that does not bound its answer reserves what such answers took before. Were it refused for that, the rest
        of a budget could never be spent. None: it cannot be smaller.
        """
        denied = verdict.denied
        if denied is None or self.plan.dimensions[denied].kind != "budget":
            return None
        amount, left = ask.amounts[denied], verdict.standings[denied].remaining
        least = max(1, self._least(estimate)[self._units[denied]])
        if amount <= least:
            return None
        amounts = [*ask.amounts]
        amounts[denied] = min(max(left, least), amount - 1)
        return Ask(ask.call_id, ask.plan, amounts)

    def used(self, spent: Spent) -> list[int]:
        """What a call took of each dimension."""
        input, output = spent.input, spent.output
        taken = (1, 1, input + output, input, output, spent.cost)
        return [*map(taken.__getitem__, self._units)]

    def _least(self, estimate: Estimate) -> tuple[int, ...]:
        """What a call takes of each unit at the very least."""
        (input, output), price = estimate.least, self._price
        return 1, 1, input + output, input, output, 0 if price is None else price.cost(input, input, output)

    def _never_fits(self, estimate: Estimate) -> NeverFits:
        least = self._least(estimate)
        found = zip(self.plan.dimensions, self._units, strict=True)
        return never_fits(next(dimension for dimension, unit in found if least[unit] > dimension.limit))


NO_PRICES: Final[Mapping[str, Price | None]] = {}


class Planner:
    """Makes and remembers terms, which only change with the records of a key and its tenant and with the table."""

    def __init__(self, rules: Rules, prices: Mapping[str, Price | None] = NO_PRICES) -> None:
        """`prices` are those of routes; None, or absent: calls are free of charge."""
        self._rules, self._prices = rules, prices
        self.all_cost = bool(prices) and all(price is not None and price.input > 0 for price in prices.values())
        """No call is free of charge: each has a prompt."""
        self._terms: OrderedDict[tuple[str, int, int, str], Terms] = OrderedDict()

    def terms(self, key: KeyRecord, tenant: Tenant | None, route: str) -> Terms:
        """Those of this key on this route."""
        name = (key.id, key.version, 0 if tenant is None else tenant.version, route)
        terms = self._terms.get(name)
        if terms is None:
            terms = self._terms[name] = self._bind(key, tenant, route)
            if len(self._terms) > MAX_TERMS:
                self._terms.popitem(last=False)
        return terms

    def _bind(self, key: KeyRecord, tenant: Tenant | None, route: str) -> Terms:
        price = self._prices.get(route)
        if price is not None and price.free:
            price = None
        found = self._dimensions(key, tenant, route)
        dimensions = tuple(d for d in found if price is not None or d.unit != "cost")
        records = ((f"key:{key.id}", key.version), (f"tenant:{key.tenant}", tenant.version if tenant else 0))
        return Terms(Plan(records, dimensions), price, ietf=self._rules.ietf_headers)

    def _dimensions(self, key: KeyRecord, tenant: Tenant | None, route: str) -> Iterator[Dimension]:
        rules = self._rules
        on_model = key.model_limits.get(route, Limit()).over(rules.key_models.get(route, Limit()))
        yield from _of("key", key.id, key.limit.over(rules.key))
        yield from _of("tenant", key.tenant, (tenant.limit if tenant else Limit()).over(rules.tenant))
        yield from _of("model", route, rules.models.get(route, Limit()))
        yield from _of("key_model", f"{key.id}:{route}", on_model)


def of_key(rules: Rules, key: KeyRecord, tenant: Tenant | None) -> list[tuple[str, Dimension]]:
    """All limits that calls of a key meet whatever they ask for, and those of the key on single routes: each with its
    route, which is empty for the others."""
    found = [("", each) for each in _of("key", key.id, key.limit.over(rules.key))]
    found += of_tenant(rules, key.tenant, tenant)
    for route in sorted({*rules.key_models, *key.model_limits}):
        on_model = key.model_limits.get(route, Limit()).over(rules.key_models.get(route, Limit()))
        found += [(route, each) for each in _of("key_model", f"{key.id}:{route}", on_model)]
    return found


def of_tenant(rules: Rules, name: str, tenant: Tenant | None) -> list[tuple[str, Dimension]]:
    """All limits of a tenant; the routes are empty."""
    return [("", each) for each in _of("tenant", name, (tenant.limit if tenant else Limit()).over(rules.tenant))]


def _of(scope: str, id: str, limit: Limit) -> Iterator[Dimension]:
    def outage(name: str, default: Outage) -> Outage:
        return limit.outage.get(name, default)

    for counted in COUNTED:
        name, kind = counted.name, counted.kind
        if (most := getattr(limit, name)) is None:
            continue
        policy = outage(name, "share")
        if kind == "lease":
            yield Dimension(name, kind, f"lease:{scope}:{id}", most, LEASE_SECONDS, scope, counted.unit, None, policy)
        else:
            key = f"rate:{scope}:{id}:{name}"
            yield Dimension(name, kind, key, most, counted.window, scope, counted.unit, None, policy)
    period: Period
    for period in get_args(Period):
        allowance = getattr(limit.budget, period)
        for unit, most in (("tokens", allowance.tokens), ("cost", allowance.cost_micros)):
            if most is not None:
                key, policy = budget_key(scope, id, period, unit), outage(BUDGET, "closed")
                yield Dimension(BUDGET, "budget", key, most, MINUTE, scope, unit, period, policy)
