"""What the gateway of a state file reports of its targets, for commands beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

from gateway.store import DEAD_SECONDS, StoreDown
from gateway.store.local.database import Connection, Database

REWRITE_SECONDS: Final = 5.0
"""A report that says nothing new is written again after so long, so that its age tells whether its gateway lives."""


class LocalBoard:
    """By boot id, with the time of writing. `now` gives seconds since the epoch.

    Raises `StoreDown` when the file cannot be written or read. Whoever has no `boot` id only reads.
    """

    def __init__(self, database: Database, boot: str, now: Callable[[], float]) -> None:
        self._database, self._boot, self._now = database, boot, now
        self._last: tuple[bytes, float] | None = None
        self._ended = False

    async def exchange(self, mine: Mapping[str, bytes]) -> dict[str, dict[str, tuple[bytes, float]]]:
        """There are no other gateways."""
        return {board: {} for board in mine}

    async def report(self, word: bytes) -> None:
        """Replace the report, if it is another one or the last has grown old."""
        now = self._now()
        if self._last is not None and self._last[0] == word and now - self._last[1] < REWRITE_SECONDS:
            return
        if not self._boot or self._ended:
            return

        def replace(connection: Connection) -> None:
            connection.execute("INSERT OR REPLACE INTO reports VALUES (?, ?, ?)", (self._boot, now, word))
            connection.execute("DELETE FROM reports WHERE written < ?", (now - DEAD_SECONDS,))

        await self._database.write(replace)
        self._last = (word, now)

    async def reports(self) -> dict[str, tuple[bytes, float]]:
        """The report of the gateway that lives here, if one does, and its age in seconds."""
        query = "SELECT gateway, report, written FROM reports"
        rows = await self._database.read(lambda connection: connection.execute(query).fetchall())
        now = self._now()
        aged = {gateway: (report, max(0.0, now - written)) for gateway, report, written in rows}
        return {gateway: (report, age) for gateway, (report, age) in aged.items() if age <= DEAD_SECONDS}

    async def end(self) -> None:
        """Take the report away; none is written any more."""
        self._ended = True
        if self._last is not None:
            with suppress(StoreDown):
                await self._database.write(
                    lambda connection: connection.execute("DELETE FROM reports WHERE gateway = ?", (self._boot,))
                )
