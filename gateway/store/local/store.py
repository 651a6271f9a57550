"""The store of a gateway that runs alone: counters in this process, records, ledger and reports in one SQLite file."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from gateway.core.types import Ask, Audit, Entry, Sum, Verdict
from gateway.store import AnyRecord, Limits, R, StoreDown, periods
from gateway.store.local.counters import Counters
from gateway.store.local.database import Database, Stamp
from gateway.store.local.ledger import LocalLedger
from gateway.store.local.records import LocalRecords
from gateway.store.local.reports import LocalReports
from gateway.store.rebuild import budgets_of

LOOK_SECONDS: Final = 0.2
"""How often the generation file is looked at for changes by others; an admission looks for itself."""
LOOKS_A_READ: Final = 5
"""Every so many looks the database is asked anyway: a writer may have died between its change and the file."""


class LocalStore:
    """In-process counters; records are read again whenever another process has changed some."""

    gateways = 1
    subscribed = True
    unsettled = 0

    def __init__(self, state: Path, now: Callable[[], float] = time.time, *, boot: str = "") -> None:
        self._now, self._boot = now, boot
        self._database = Database(state)
        self._generation = self._database.generation
        self._counters = Counters(now)
        self.limits: Limits = self
        self._records = LocalRecords(self._database)
        self._ledger = LocalLedger(self._database)
        self._reports = LocalReports(self._database, boot, now)
        self._looking: asyncio.Task[None] | None = None

    async def open(self) -> None:
        now = self._now()
        first = min(periods.first_day("week", now), periods.first_day("month", now))
        self._counters.restore(budgets_of(await self._ledger.sums(first, periods.day(now)), now))
        await self._records.refresh(anyway=True)
        self._looking = asyncio.create_task(self._look(), name="state file")

    async def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            with suppress(asyncio.CancelledError):
                await self._looking
        await self._reports.end()
        await self._database.close()

    async def ping(self) -> None:
        await self._records.refresh()

    async def verify(self) -> None:
        await self._records.refresh()

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

    def settle(self, ask: Ask, at: int, used: Sequence[int]) -> None:
        self._counters.settle(ask, at, used)

    def charge_later(self, ask: Ask, at: int, used: Sequence[int]) -> None:
        """Nothing: this store is never cut off from its counters."""

    def register_lease(self, ask: Ask) -> None:
        self._counters.register_lease(ask)

    def open_leases(self) -> list[Ask]:
        """None, for the same reason."""
        return []

    async def get(self, kind: type[R], id: str) -> R | None:
        return await self._records.get(kind, id)

    async def all(self, kind: type[R]) -> list[R]:
        return await self._records.all(kind)

    async def put(self, record: AnyRecord, audit: Audit | None = None) -> None:
        await self._records.put(record, audit)

    async def audit(self, count: int = 100) -> list[Audit]:
        return await self._records.audit(count)

    def watch(self, changed: Callable[[str | None], None]) -> None:
        self._records.watch(changed)

    async def append(self, batch: str, entries: Sequence[Entry]) -> None:
        await self._ledger.append(batch, entries)

    async def sums(self, first: str, last: str) -> list[Sum]:
        return await self._ledger.sums(first, last)

    async def by_target(self) -> dict[str, tuple[int, int]]:
        return await self._ledger.by_target()

    async def exchange(self, mine: Mapping[str, bytes]) -> dict[str, dict[str, tuple[bytes, float]]]:
        return {board: {} for board in mine}

    async def report(self, word: bytes) -> None:
        await self._reports.write(word)

    async def reports(self) -> dict[str, tuple[bytes, float]]:
        return await self._reports.read()

    async def _look(self) -> None:
        looks = 0
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            looks += 1
            with suppress(StoreDown):
                await self._records.refresh(anyway=looks % LOOKS_A_READ == 0)


def prepare(state: Path) -> Path:
    """Make the database, with what an earlier version left, and return where it is; `StoreDown`: it cannot be used."""
    database = Database(state)
    database.make()
    return database.path
