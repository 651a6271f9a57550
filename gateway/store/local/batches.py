"""Files and batches in the state file. Only one gateway works on them; commands beside it read, and cancel."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, TypeVar

import msgspec
from msgspec import structs

from gateway.core.batches import DAY, Batch, Part, Progress, Storage, StoredFile, Work
from gateway.store.api import LEASE_SECONDS, Conflict, QuotaReached, Taken
from gateway.store.local.database import Connection, Database

T = TypeVar("T")

# Made when they are first needed, and unknown to an earlier version, which leaves them alone.
TABLES: Final = (
    "CREATE TABLE IF NOT EXISTS stored_files (id TEXT PRIMARY KEY, tenant TEXT NOT NULL, created REAL NOT NULL, "
    "bytes INTEGER NOT NULL, expires REAL NOT NULL, body TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS stored_batches (id TEXT PRIMARY KEY, tenant TEXT NOT NULL, created REAL NOT NULL, "
    "version INTEGER NOT NULL, ended INTEGER NOT NULL, expires REAL NOT NULL, body TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS batch_work (batch TEXT NOT NULL, id TEXT NOT NULL, place INTEGER NOT NULL, "
    "body TEXT NOT NULL, worker TEXT NOT NULL, held REAL NOT NULL, done INTEGER NOT NULL, PRIMARY KEY (batch, id)) "
    "WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS batch_lines (batch TEXT NOT NULL, line INTEGER NOT NULL, good INTEGER NOT NULL, "
    "PRIMARY KEY (batch, line)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS batch_parts (number INTEGER PRIMARY KEY AUTOINCREMENT, batch TEXT NOT NULL, "
    "name TEXT NOT NULL, void TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS batch_closed (batch TEXT PRIMARY KEY) WITHOUT ROWID",
)
_ORDER: Final = "ORDER BY created DESC, id DESC"
_PLACES: Final = {"check": 0, "lines": 1, "finish": 2}
EXPIRED_AT_ONCE: Final = 500


class LocalBatches:
    """What another worker of this gateway has taken is free at once: it must have died, for there is only one."""

    def __init__(
        self, database: Database, boot: str, now: Callable[[], float] = time.time, lease: float = LEASE_SECONDS
    ) -> None:
        self._database, self._boot, self._now, self._lease = database, boot, now, lease
        self._watching: list[Callable[[], None]] = []
        self._made = False
        self._cleaned = float("-inf")

    async def add_file(self, file: StoredFile, most: Storage | None = None) -> None:
        await self._write(partial(_add_file, file, most))

    async def file(self, tenant: str, id: str) -> StoredFile | None:
        rows = await self._rows("SELECT body FROM stored_files WHERE id = ? AND tenant = ?", id, tenant)
        return _decoded(rows, StoredFile)[0] if rows else None

    async def files(self, tenant: str) -> list[StoredFile]:
        query = f"SELECT body FROM stored_files WHERE tenant = ? {_ORDER}"  # noqa: S608
        return _decoded(await self._rows(query, tenant), StoredFile)

    async def remove_file(self, file: StoredFile) -> bool:
        query = "DELETE FROM stored_files WHERE id = ?"
        return bool(await self._write(lambda connection: connection.execute(query, (file.id,)).rowcount))

    async def put(self, batch: Batch, most: Storage | None = None) -> None:
        await self._write(partial(_put, batch, most))
        for changed in self._watching:
            changed()

    async def batch(self, tenant: str, id: str) -> Batch | None:
        rows = await self._rows("SELECT body FROM stored_batches WHERE id = ? AND tenant = ?", id, tenant)
        return await self._progressed(_decoded(rows, Batch)[0]) if rows else None

    async def batches(self, tenant: str | None = None) -> list[Batch]:
        query = f"SELECT body FROM stored_batches WHERE ?1 IS NULL OR tenant = ?1 {_ORDER}"  # noqa: S608
        return [await self._progressed(batch) for batch in _decoded(await self._rows(query, tenant), Batch)]

    async def active(self) -> list[Batch]:
        query = "SELECT body FROM stored_batches WHERE NOT ended ORDER BY created, id"
        return _decoded(await self._rows(query), Batch)

    async def remove_batch(self, batch: Batch) -> None:
        def remove(connection: Connection) -> None:
            _forget(batch, connection)
            connection.execute("DELETE FROM stored_batches WHERE id = ?", (batch.id,))

        await self._write(remove)

    async def expired(self, now: float) -> tuple[list[StoredFile], list[Batch]]:
        query = "SELECT body FROM {} WHERE expires <= ? LIMIT ?"
        files = await self._rows(query.format("stored_files"), now, EXPIRED_AT_ONCE)
        batches = await self._rows(query.format("stored_batches"), now, EXPIRED_AT_ONCE)
        return _decoded(files, StoredFile), _decoded(batches, Batch)

    def watch(self, changed: Callable[[], None]) -> None:
        self._watching.append(changed)

    async def add_work(self, batch: Batch, work: Sequence[Work]) -> None:
        rows = [
            (batch.id, f"{each.kind}-{each.first}", _PLACES[each.kind] << 40 | each.first, msgspec.json.encode(each))
            for each in work
        ]
        insert = "INSERT OR IGNORE INTO batch_work VALUES (?, ?, ?, ?, '', 0, 0)"

        def add(connection: Connection) -> None:
            connection.executemany(insert, rows)
            if any(each.kind == "finish" for each in work):  # it takes the place of all others
                query = "UPDATE batch_work SET done = 1 WHERE batch = ? AND place < ?"
                connection.execute(query, (batch.id, _PLACES["finish"] << 40))

        await self._write(add)

    async def take(self, batch: Batch) -> Taken | None:
        return await self._write(partial(self._take, batch))

    async def hold(self, batch: Batch, ids: Sequence[str]) -> None:
        await self._held(batch, ids, self._now())

    async def give_back(self, batch: Batch, ids: Sequence[str]) -> None:
        await self._held(batch, ids, 0.0)

    async def record(self, batch: Batch, part: str, lines: Sequence[tuple[int, bool]], done: Sequence[str]) -> bool:
        return await self._write(partial(_record, batch, part, lines, done))

    async def recorded(self, batch: Batch, first: int, count: int) -> set[int]:
        query = "SELECT line FROM batch_lines WHERE batch = ? AND line >= ? AND line < ?"
        return {line for (line,) in await self._rows(query, batch.id, first, first + count)}

    async def progress(self, batch: Batch, *, close: bool = False) -> Progress:
        if close:
            query = "INSERT OR IGNORE INTO batch_closed VALUES (?)"
            await self._write(lambda connection: connection.execute(query, (batch.id,)) and None)
        count = "SELECT count(*), coalesce(sum(good), 0) FROM batch_lines WHERE batch = ?"
        ((ended, good),) = await self._rows(count, batch.id)
        return Progress(good, ended - good)

    async def parts(self, batch: Batch) -> list[Part]:
        rows = await self._rows("SELECT name, void FROM batch_parts WHERE batch = ? ORDER BY number", batch.id)
        return [Part(name, frozenset(map(int, void.split(","))) if void else frozenset()) for name, void in rows]

    async def interactive(self, mine: bool) -> bool:
        """There are no others."""
        return mine

    async def is_cleaner(self) -> bool:
        now = self._now()
        if now - self._cleaned < DAY:
            return False
        self._cleaned = now
        return True

    async def forget_work(self, batch: Batch) -> None:
        await self._write(partial(_forget, batch))

    def _take(self, batch: Batch, connection: Connection) -> Taken | None:
        now = self._now()
        query = (
            "SELECT id, body FROM batch_work WHERE batch = ? AND NOT done AND (worker != ? OR held < ?) "
            "ORDER BY place LIMIT 1"
        )
        found = connection.execute(query, (batch.id, self._boot, now - self._lease)).fetchone()
        if found is None:
            return None
        id, body = found
        query = "UPDATE batch_work SET worker = ?, held = ? WHERE batch = ? AND id = ?"
        connection.execute(query, (self._boot, now, batch.id, id))
        return Taken(id, msgspec.json.decode(body, type=Work))

    async def _held(self, batch: Batch, ids: Sequence[str], held: float) -> None:
        query = "UPDATE batch_work SET held = ? WHERE batch = ? AND id = ? AND worker = ?"
        rows = [(held, batch.id, id, self._boot) for id in ids]
        await self._write(lambda connection: connection.executemany(query, rows) and None)

    async def _progressed(self, batch: Batch) -> Batch:
        if batch.ended:
            return batch
        progress = await self.progress(batch)
        return structs.replace(batch, completed=progress.completed, failed=progress.failed)

    async def _rows(self, query: str, *values: Any) -> list[Any]:
        await self._make()
        return await self._database.read(lambda connection: connection.execute(query, values).fetchall())

    async def _write(self, work: Callable[[Connection], T]) -> T:
        await self._make()
        return await self._database.write(work)

    async def _make(self) -> None:
        if not self._made:
            await self._database.write(_make)
            self._made = True


def _make(connection: Connection) -> None:
    for statement in TABLES:
        connection.execute(statement)


def _add_file(file: StoredFile, most: Storage | None, connection: Connection) -> None:
    if connection.execute("SELECT 1 FROM stored_files WHERE id = ?", (file.id,)).fetchone():
        return
    if most is not None:
        query = "SELECT count(*), coalesce(sum(bytes), 0) FROM stored_files WHERE tenant = ?"
        files, stored = connection.execute(query, (file.tenant,)).fetchone()
        if most.files is not None and files >= most.files:
            raise QuotaReached("files")
        if most.bytes is not None and stored + file.bytes > most.bytes:
            raise QuotaReached("bytes")
    row = (file.id, file.tenant, file.created, file.bytes, file.expires, msgspec.json.encode(file).decode())
    connection.execute("INSERT INTO stored_files VALUES (?, ?, ?, ?, ?, ?)", row)


def _put(batch: Batch, most: Storage | None, connection: Connection) -> None:
    query = "SELECT version FROM stored_batches WHERE id = ?"
    (version,) = connection.execute(query, (batch.id,)).fetchone() or (0,)
    if version + 1 != batch.version:
        raise Conflict(f"batch:{batch.id}")
    if not version and most is not None and most.batches is not None:
        query = "SELECT count(*) FROM stored_batches WHERE tenant = ? AND NOT ended"
        if connection.execute(query, (batch.tenant,)).fetchone()[0] >= most.batches:
            raise QuotaReached("batches")
    body = msgspec.json.encode(batch).decode()
    row = (batch.id, batch.tenant, batch.created, batch.version, batch.ended, batch.expires, body)
    connection.execute("INSERT OR REPLACE INTO stored_batches VALUES (?, ?, ?, ?, ?, ?, ?)", row)


def _record(
    batch: Batch, part: str, lines: Sequence[tuple[int, bool]], done: Sequence[str], connection: Connection
) -> bool:
    if connection.execute("SELECT 1 FROM batch_closed WHERE batch = ?", (batch.id,)).fetchone():
        return False
    query, void = "INSERT OR IGNORE INTO batch_lines VALUES (?, ?, ?)", list[str]()
    for line, good in lines:
        if not connection.execute(query, (batch.id, line, good)).rowcount:
            void.append(str(line))
    if len(void) < len(lines):
        query = "INSERT INTO batch_parts (batch, name, void) VALUES (?, ?, ?)"
        connection.execute(query, (batch.id, part, ",".join(void)))
    query = "UPDATE batch_work SET done = 1 WHERE batch = ? AND id = ?"
    connection.executemany(query, [(batch.id, id) for id in done])
    return True


def _forget(batch: Batch, connection: Connection) -> None:
    for table in ("batch_work", "batch_lines", "batch_parts", "batch_closed"):
        connection.execute(f"DELETE FROM {table} WHERE batch = ?", (batch.id,))  # noqa: S608


def _decoded(rows: list[Any], kind: type[T]) -> list[T]:
    return [msgspec.json.decode(body, type=kind) for (body,) in rows]
