"""`max_inflight`: calls at once at a target, counted exactly for all gateways together by leases in the store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from gateway.core.types import Ask, Dimension, Plan
from gateway.store import LEASE_SECONDS, Limits, StoreDown
from gateway.targets.target import Target

GiveBack = Callable[[], asyncio.Future[Any] | None]


class TargetSlots:
    """The slots of targets. A gateway that dies gives its own back after 15 s. `gateways` counts the living workers."""

    def __init__(self, store: Limits, gateways: Callable[[], int] = lambda: 1) -> None:
        self._store, self._gateways = store, gateways
        self._plans: dict[str, Plan] = {}

    async def take(self, target: Target, name: str) -> GiveBack | None:
        """What gives the slot back, or None if there is none left. `name` is unique for ever.

        While the store is down each gateway keeps to its share.
        """
        assert target.max_inflight is not None
        ask = Ask(name, self._plan(target.name, target.max_inflight), (1,))
        try:
            verdict = await self._store.admit(ask)
        except StoreDown:
            share = max(1, target.max_inflight // max(1, self._gateways()))
            if target.inflight.own > share:  # this call is one of them
                return None
            self._store.register_lease(ask)  # for when the store is back
            return partial(self._store.settle, ask, 0, [1])
        return partial(self._store.settle, ask, verdict.at, [1]) if verdict.denied is None else None

    def _plan(self, target: str, limit: int) -> Plan:
        """What a call at this target asks for."""
        plan = self._plans.get(target)
        if plan is None or plan.dimensions[0].limit != limit:
            key = f"lease:target:{target}"
            slot = Dimension("max_inflight", "lease", key, limit, LEASE_SECONDS, scope="target", unit="calls")
            plan = self._plans[target] = Plan((), (slot,))
        return plan
