"""The keys of the soak, with limits of every kind, and those that come and go."""

from __future__ import annotations

import time

from faults.fleet import Fleet
from harness.gateway_process import Issued

from gateway.auth import token
from gateway.core.types import Allowance, Budget, Limit

NARROW, RPM, TPM, SPENT = 4, 30, 600, 1000
LIMITS: dict[str, Limit] = {
    "free": Limit(),
    "crowd": Limit(),
    "budget": Limit(concurrency=200, tpm=10_000_000, budget=Budget(month=Allowance(tokens=10**9, cost_micros=10**12))),
    "narrow": Limit(concurrency=NARROW),
    "rpm": Limit(rpm=RPM),
    "tpm": Limit(tpm=TPM),
    "spent": Limit(budget=Budget(month=Allowance(tokens=SPENT))),
}
GOOD = ("free", "crowd", "budget")
"""Keys for routes whose targets misbehave."""
CROWD = (Limit(concurrency=10, rpm=100_000), Limit(concurrency=5, tpm=10_000_000))
"""What the tenant of some keys has, by turns."""
UNKNOWN = token("Z" * 12, "z" * 43)


class Keys:
    """All keys by label, made directly at the Redis that the gateways reach by a spoilable link."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.issued: dict[str, Issued] = {}
        self.volatile: list[Issued] = []
        """Living keys that chaos has made, the oldest first."""
        self.revoked: dict[str, float] = {}
        """When each of those that were ended was, on the monotonic clock, by id."""

    async def start(self) -> None:
        await self.change_tenant(0)
        for label, limit in LIMITS.items():
            tenant = "crowd" if label == "crowd" else "default"
            self.issued[label] = await self._fleet.issue(limit=limit, tenant=tenant)
        await self.create()

    def secret(self, label: str) -> str:
        return self.issued[label].secret

    async def create(self) -> None:
        """One more that will not live long."""
        self.volatile.append(await self._fleet.issue(tenant="crowd"))

    async def revoke(self) -> None:
        """End the oldest, if it is not the only one."""
        if len(self.volatile) > 1:
            doomed = self.volatile.pop(0).record.id
            await self._fleet.administer(lambda registrar: registrar.revoke(doomed))
            self.revoked[doomed] = time.monotonic()

    async def change_tenant(self, turn: int) -> None:
        await self._fleet.set_tenant("crowd", CROWD[turn % len(CROWD)])
