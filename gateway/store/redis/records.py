"""Keys, tenants, admin keys and orders about targets in Redis, and the log of their changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from gateway.core.types import Audit
from gateway.store import KINDS, PLURALS, AnyRecord, Conflict, R, StoreDown
from gateway.store.redis.connection import Pipe, script
from gateway.store.redis.invalidation import Changes

MAX_AUDIT = 100_000
"""Entries that the audit log keeps."""

TAG = "{tl}:"
_EPOCH, _AUDIT, CHANGED = TAG + "epoch", TAG + "audit", TAG + "changed"

PUT = script("put")


class RedisRecords:
    """Records in `pipe`'s Redis; `counters` is the other one that must know their versions, if they live apart."""

    def __init__(self, pipe: Pipe, changes: Changes, counters: Pipe | None) -> None:
        self._pipe, self._changes, self._counters = pipe, changes, counters
        self._had_records = False

    async def get(self, kind: type[R], id: str) -> R | None:
        raw = await self._pipe.call("HGET", f"{TAG}{KINDS[kind]}:{id}", "record")
        if raw is None:
            await self.look_for_loss()
            return None
        self._had_records = True
        return msgspec.json.decode(raw, type=kind)

    async def all(self, kind: type[R]) -> list[R]:
        ids = await self._pipe.call("ZRANGE", f"{TAG}{PLURALS[kind]}", 0, -1)
        if not ids:
            await self.look_for_loss()
        names = [f"{TAG}{KINDS[kind]}:{id.decode()}" for id in ids]
        found = await asyncio.gather(*(self._pipe.call("HGET", name, "record") for name in names))
        return [msgspec.json.decode(raw, type=kind) for raw in found if raw is not None]

    async def put(self, record: AnyRecord, audit: Audit | None = None) -> None:
        kind = KINDS[type(record)]
        name = f"{kind}:{record.id}"
        entry = b"" if audit is None else msgspec.json.encode(audit)
        keys = [TAG + name, TAG + PLURALS[type(record)], _AUDIT, _EPOCH, TAG + "version:" + name]
        fields = (record.id, record.version, msgspec.json.encode(record), record.created)
        if await asyncio.shield(self._pipe.run(PUT, keys, *fields, entry, CHANGED, name, MAX_AUDIT)) != 1:
            raise Conflict(name)
        if self._counters is not None:
            await self._counters.call("SET", TAG + "version:" + name, record.version)

    async def audit(self, count: int = 100) -> list[Audit]:
        found = await self._pipe.call("XREVRANGE", _AUDIT, "+", "-", "COUNT", count)
        return [msgspec.json.decode(fields[1], type=Audit) for _, fields in found]

    def watch(self, changed: Callable[[str | None], None]) -> None:
        self._changes.watch(changed)

    @property
    def subscribed(self) -> bool:
        return self._changes.subscribed

    async def version(self, name: str) -> bytes | None:
        """The version of the record named like `key:<id>`; None: there is no such record."""
        stored: bytes | None = await self._pipe.call("HGET", TAG + name, "version")
        if stored is None:
            await self.look_for_loss()
        return stored

    async def look_for_loss(self) -> None:
        """Raises `StoreDown` if nothing is there and there was once: the store has lost its memory."""
        if await self._pipe.call("EXISTS", _EPOCH):
            self._had_records = True
        elif self._had_records:
            raise StoreDown("Redis has lost its records")
