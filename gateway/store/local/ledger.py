"""The usage ledger in the state file: every ended call, and sums by day and by target beside them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final

from gateway.core.types import Entry, Sum
from gateway.store.local.database import Connection, Database
from gateway.store.local.rows import MAX_CALLS, add_calls

REMEMBERED: Final = 1000
"""Batches known again when they come twice."""


class LocalLedger:
    """Raises `StoreDown` when the file cannot be written or read; then nothing of the batch was written."""

    def __init__(self, database: Database, max_calls: int = MAX_CALLS) -> None:
        self._database, self._max_calls = database, max_calls

    async def append(self, batch: str, entries: Sequence[Entry]) -> None:
        if entries:
            await self._database.write(partial(self._append, batch, entries))

    async def sums(self, first: str, last: str) -> list[Sum]:
        query = "SELECT * FROM usage WHERE day BETWEEN ? AND ? ORDER BY day, key_id, tenant, route"
        rows = await self._database.read(lambda connection: connection.execute(query, (first, last)).fetchall())
        return [Sum(**dict(zip(Sum.__struct_fields__, row, strict=True))) for row in rows]

    async def by_target(self) -> dict[str, tuple[int, int]]:
        rows = await self._database.read(lambda connection: connection.execute("SELECT * FROM target_usage").fetchall())
        return {target: (prompt, completion) for target, prompt, completion in rows}

    def _append(self, batch: str, entries: Sequence[Entry], connection: Connection) -> None:
        if not connection.execute("INSERT OR IGNORE INTO batches (name) VALUES (?)", (batch,)).rowcount:
            return
        connection.execute("DELETE FROM batches WHERE number <= (SELECT max(number) FROM batches) - ?", (REMEMBERED,))
        add_calls(connection, entries, self._max_calls)
