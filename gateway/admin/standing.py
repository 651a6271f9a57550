"""The limits that hold for a key or a tenant, the table's defaults among them, and how much of each is used."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct, structs

from gateway.admin.models import KeyHeld, LimitHeld, TenantHeld
from gateway.admin.views import shown, tenant
from gateway.core.dimensions import BUDGET
from gateway.core.types import Ask, Dimension, KeyRecord, Plan, Tenant
from gateway.limits.plan import Rules, of_key, of_tenant
from gateway.store import Store


class Holding(Struct, frozen=True):
    """By what limits hold: the table's rules; `shared`: counters are in Redis, where everybody sees them."""

    rules: Rules = Rules()
    shared: bool = False


async def key_held(store: Store, holding: Holding, record: KeyRecord) -> KeyHeld:
    """A key with its limits. Raises `StoreDown`."""
    limits = of_key(holding.rules, record, await store.records.get(Tenant, record.tenant))
    return KeyHeld(**structs.asdict(shown(record)), standing=await _standing(store, holding, limits))


async def tenant_held(store: Store, holding: Holding, tenant_id: str) -> TenantHeld:
    """A tenant with its limits. Raises `KeyError` and `StoreDown`."""
    found = await tenant(store, tenant_id)
    limits = of_tenant(holding.rules, tenant_id, await store.records.get(Tenant, tenant_id))
    return TenantHeld(**structs.asdict(found), standing=await _standing(store, holding, limits))


async def _standing(store: Store, holding: Holding, limits: Sequence[tuple[str, Dimension]]) -> list[LimitHeld]:
    if not limits:
        return []
    dimensions = tuple(dimension for _, dimension in limits)
    verdict = await store.limits.look(Ask("tl-show", Plan((), dimensions), [0] * len(dimensions)))
    return [
        _held(route, dimension, standing.remaining if holding.shared or dimension.name == BUDGET else None)
        for (route, dimension), standing in zip(limits, verdict.standings, strict=True)
    ]


def _held(route: str, dimension: Dimension, left: int | None) -> LimitHeld:
    return LimitHeld(
        scope=dimension.scope,
        route=route,
        name=dimension.name,
        period=dimension.period or "",
        unit=dimension.unit,
        limit=dimension.limit,
        used=None if left is None else dimension.limit - left,
        left=left,
    )
