"""The store of a gateway that runs alone: counters in this process, records, ledger and reports in one SQLite file."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from gateway.store import StoreDown, periods
from gateway.store.local.batches import LocalBatches
from gateway.store.local.board import LocalBoard
from gateway.store.local.counters import Counters
from gateway.store.local.database import Database
from gateway.store.local.homes import LocalHomes
from gateway.store.local.ledger import LocalLedger
from gateway.store.local.limits import LocalLimits
from gateway.store.local.records import LocalRecords
from gateway.store.rebuild import budgets_of

LOOK_SECONDS: Final = 0.2
"""How often the generation file is looked at for changes by others; an admission looks for itself."""
LOOKS_A_READ: Final = 5
"""Every so many looks the database is asked anyway: a writer may have died between its change and the file."""


class LocalStore:
    """In-process counters; records are read again whenever another process has changed some."""

    gateways = 1
    has_answered = True

    def __init__(self, state: Path, now: Callable[[], float] = time.time, *, boot: str = "") -> None:
        self._now = now
        self._database = Database(state)
        self._counters = Counters(now)
        self.records = LocalRecords(self._database)
        self.limits = LocalLimits(self._counters, self.records, self._database.generation, now)
        self.ledger = LocalLedger(self._database)
        self.board = LocalBoard(self._database, boot, now)
        self.homes = LocalHomes(now)
        self.batches = LocalBatches(self._database, boot, now)
        self._looking: asyncio.Task[None] | None = None

    async def open(self) -> None:
        now = self._now()
        first = min(periods.first_day("week", now), periods.first_day("month", now))
        self._counters.restore(budgets_of(await self.ledger.sums(first, periods.day(now)), now))
        await self.records.refresh(anyway=True)
        self._looking = asyncio.create_task(self._look(), name="state file")

    async def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            with suppress(asyncio.CancelledError):
                await self._looking
        await self.board.end()
        await self._database.close()

    async def ping(self) -> None:
        await self.records.refresh()

    async def verify(self) -> None:
        await self.records.refresh()

    async def _look(self) -> None:
        looks = 0
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            looks += 1
            with suppress(StoreDown):
                await self.records.refresh(anyway=looks % LOOKS_A_READ == 0)


def prepare(state: Path) -> Path:
    """Make the database, with what an earlier version left, and return where it is; `StoreDown`: it cannot be used."""
    database = Database(state)
    database.make()
    return database.path
