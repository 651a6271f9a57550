"""Limits of a gateway that runs alone: counters in this process, beside the versions of its records."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from gateway.core.types import Ask, Verdict
from gateway.store.local.counters import Counters
from gateway.store.local.database import Stamp
from gateway.store.local.records import LocalRecords


class LocalLimits:
    """`generation` is the file whose stamp shows that somebody has changed a record; `now` gives seconds."""

    unsettled = 0

    def __init__(
        self, counters: Counters, records: LocalRecords, generation: str | Path, now: Callable[[], float]
    ) -> None:
        self._counters, self._records, self._generation, self._now = counters, records, generation, now

    async def admit(self, ask: Ask) -> Verdict:
        try:
            stamp: Stamp = os.stat(self._generation)  # every call comes by: no further function
        except OSError:
            stamp = None
        if stamp != self._records.stamp:
            await self._records.refresh()
        for name, version in ask.plan.records:
            kind, _, id = name.partition(":")
            record = self._records.known[kind].get(id)
            if (0 if record is None else record.version) != version:
                return Verdict(stale=True, at=int(self._now() * 1e6))
        return self._counters.charge(ask)

    async def look(self, ask: Ask) -> Verdict:
        return self._counters.look(ask)

    def settle(self, ask: Ask, at: int, used: Sequence[int]) -> None:
        self._counters.settle(ask, at, used)

    def charge_later(self, ask: Ask, at: int, used: Sequence[int]) -> None:
        """Nothing: these counters are never out of reach."""

    def register_lease(self, ask: Ask) -> None:
        self._counters.register_lease(ask)

    def open_leases(self) -> list[Ask]:
        """None, for the same reason."""
        return []
