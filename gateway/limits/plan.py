"""Which dimensions a call is checked against: those of its key, its tenant, its model, and its key on its model."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Final, get_args

from msgspec import Struct

from gateway.core.types import Dimension, KeyRecord, Limit, Outage, Period, Spent, Tenant
from gateway.store import LEASE_SECONDS
from gateway.store.rebuild import budget_key

MINUTE: Final = 60.0
MAX_PLANS: Final = 20_000

RATES: Final = (("rpm", "requests"), ("tpm", "tokens"), ("itpm", "input"), ("otpm", "output"))
"""Rate limits by name, and what they count."""


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


class Planner:
    """Makes and remembers plans: the dimensions of a key on a route, which only change with records and table."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._plans: OrderedDict[tuple[str, int, int, str, bool], tuple[Dimension, ...]] = OrderedDict()

    def plan(self, key: KeyRecord, tenant: Tenant | None, route: str, *, priced: bool = True) -> tuple[Dimension, ...]:
        """The dimensions, with amounts of 1 that `charged` replaces; money only limits what is `priced`."""
        name = (key.id, key.version, tenant.version if tenant else 0, route, priced)
        plan = self._plans.get(name)
        if plan is None:
            found = self._dimensions(key, tenant, route)
            plan = self._plans[name] = tuple(d for d in found if priced or d.unit != "cost")
            if len(self._plans) > MAX_PLANS:
                self._plans.popitem(last=False)
        return plan

    def _dimensions(self, key: KeyRecord, tenant: Tenant | None, route: str) -> Iterator[Dimension]:
        rules = self._rules
        on_model = key.model_limits.get(route, Limit()).over(rules.key_models.get(route, Limit()))
        yield from _of("key", key.id, key.limit.over(rules.key))
        yield from _of("tenant", key.tenant, (tenant.limit if tenant else Limit()).over(rules.tenant))
        yield from _of("model", route, rules.models.get(route, Limit()))
        yield from _of("key_model", f"{key.id}:{route}", on_model)


def _of(scope: str, id: str, limit: Limit) -> Iterator[Dimension]:
    def outage(name: str, default: Outage) -> Outage:
        return limit.outage.get(name, default)

    for name, unit in RATES:
        if (most := getattr(limit, name)) is not None:
            key = f"rate:{scope}:{id}:{name}"
            yield Dimension(name, "rate", key, most, MINUTE, 1, scope, unit, None, outage(name, "share"))
    if limit.concurrency is not None:
        key, policy = f"lease:{scope}:{id}", outage("concurrency", "share")
        yield Dimension("concurrency", "lease", key, limit.concurrency, LEASE_SECONDS, 1, scope, "calls", None, policy)
    period: Period
    for period in get_args(Period):
        allowance = getattr(limit.budget, period)
        for unit, most in (("tokens", allowance.tokens), ("cost", allowance.cost_micros)):
            if most is not None:
                key, policy = budget_key(scope, id, period, unit), outage("budget", "closed")
                yield Dimension("budget", "budget", key, most, MINUTE, 1, scope, unit, period, policy)


def units(dimension: Dimension, spent: Spent) -> int:
    """What a call takes of a dimension."""
    match dimension.unit:
        case "tokens":
            return spent.input + spent.output
        case "input":
            return spent.input
        case "output":
            return spent.output
        case "cost":
            return spent.cost
    return 1


def charged(plan: tuple[Dimension, ...], spent: Spent) -> tuple[Dimension, ...]:
    """The plan with what to reserve; never more than a dimension can ever hold."""
    return tuple(
        dimension
        if dimension.unit in ("requests", "calls")
        else Dimension(
            dimension.name,
            dimension.kind,
            dimension.key,
            dimension.limit,
            dimension.window,
            min(units(dimension, spent), dimension.limit),
            dimension.scope,
            dimension.unit,
            dimension.period,
            dimension.outage,
        )
        for dimension in plan
    )
