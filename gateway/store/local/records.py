"""Records in the state file and, all of them, in memory: reading one asks the file only after somebody changed one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple

import msgspec

from gateway.core.types import Audit
from gateway.store import KINDS, AnyRecord, Conflict, R, StoreDown
from gateway.store.local.database import Connection, Database, Stamp
from gateway.store.local.rows import log_change, write_record

_TYPES: Final[dict[str, type[Any]]] = {name: kind for kind, name in KINDS.items()}


class _Changes(NamedTuple):
    """What was written since a generation."""

    identity: tuple[int, int]
    whole: bool
    """It is all that there is, of a file that is another one than before."""
    generation: int
    records: list[AnyRecord]


class LocalRecords:
    """Every change is a generation of the file; what was read last is known by its number."""

    subscribed = True

    def __init__(self, database: Database) -> None:
        self._database = database
        self.known: dict[str, dict[str, Any]] = {name: {} for name in _TYPES}
        """Records by id, by what their kind is called in the store."""
        self._identity: tuple[int, int] | None = None
        self._generation = 0
        self.stamp: Stamp = None
        """Of what is in memory."""
        self._loading = asyncio.Lock()
        self._watching: list[Callable[[str | None], None]] = []

    async def refresh(self, *, anyway: bool = False) -> None:
        """Read what has changed, if the generation file shows that something has, or `anyway`.

        What was there when this was called is known when it returns.
        """
        if self._database.stamp() == self.stamp and not anyway:
            return
        async with self._loading:
            stamp = self._database.stamp()
            if stamp != self.stamp or anyway:
                changes = await self._database.read(partial(_changes, self._identity, self._generation))
                self._take_over(changes)
                self.stamp = stamp

    async def get(self, kind: type[R], id: str) -> R | None:
        await self.refresh()
        found: R | None = self.known[KINDS[kind]].get(id)
        return found

    async def all(self, kind: type[R]) -> list[R]:
        await self.refresh()
        return sorted(self.known[KINDS[kind]].values(), key=lambda record: record.created)

    async def put(self, record: AnyRecord, audit: Audit | None = None) -> None:
        await self._database.change(partial(_put, record, audit))

    async def audit(self, count: int = 100) -> list[Audit]:
        query = "SELECT entry FROM audit ORDER BY number DESC LIMIT ?"
        rows = await self._database.read(lambda connection: connection.execute(query, (count,)).fetchall())
        return [msgspec.json.decode(entry, type=Audit) for (entry,) in rows]

    def watch(self, changed: Callable[[str | None], None]) -> None:
        self._watching.append(changed)

    def _take_over(self, changes: _Changes) -> None:
        if changes.whole:
            for records in self.known.values():
                records.clear()
        names = []
        for record in changes.records:
            kind = KINDS[type(record)]
            self.known[kind][record.id] = record
            names.append(f"{kind}:{record.id}")
        self._identity, self._generation = changes.identity, changes.generation
        for changed in self._watching:
            for name in [None] if changes.whole else names:
                changed(name)


def _changes(identity: tuple[int, int] | None, generation: int, connection: Connection) -> _Changes:
    whole = connection.identity != identity
    query = "SELECT kind, body, changed FROM records WHERE changed > ? ORDER BY changed"
    records: list[AnyRecord] = []
    for kind, body, changed in connection.execute(query, (0 if whole else generation,)):
        try:
            records.append(msgspec.json.decode(body, type=_TYPES[kind]))
        except (KeyError, msgspec.DecodeError) as error:
            raise StoreDown(f"a record of kind {kind!r} in the state file cannot be read: {error}") from error
        generation = changed
    return _Changes(connection.identity, whole, generation, records)


def _put(record: AnyRecord, audit: Audit | None, connection: Connection) -> int:
    """Write the record and its entry; returns the generation that this makes."""
    kind = KINDS[type(record)]
    query = "SELECT version FROM records WHERE kind = ? AND id = ?"
    (stored,) = connection.execute(query, (kind, record.id)).fetchone() or (0,)
    if record.version != stored + 1:
        raise Conflict(f"{kind}:{record.id}")
    generation = write_record(connection, record)
    if audit is not None:
        log_change(connection, msgspec.json.encode(audit))
    return generation
