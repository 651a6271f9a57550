"""The store that many gateways share, in one Redis or in two: counters in the one, records and ledger in the other."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any

from gateway.core.types import Ask, Audit, Entry, Sum, Verdict
from gateway.store import AnyRecord, Limits, R, StoreDown
from gateway.store.redis.board import RedisBoard
from gateway.store.redis.connection import Pipe
from gateway.store.redis.counters import RedisCounters
from gateway.store.redis.invalidation import Changes
from gateway.store.redis.ledger import RedisLedger
from gateway.store.redis.liveness import Workers
from gateway.store.redis.records import CHANGED, RedisRecords

log = logging.getLogger("trunkline.store")


class RedisStore:
    """Every method that waits raises `StoreDown` when Redis does not answer within `timeout` seconds.

    `boot` names a worker that admits calls; without it this is only somebody who looks and changes records.
    """

    def __init__(self, url: str, *, timeout: float = 0.25, records_url: str | None = None, boot: str = "") -> None:
        separate = records_url not in (None, url)
        self._pipe = Pipe(url, timeout, self._connected)
        self._pipes = [self._pipe, Pipe(records_url or url, timeout)] if separate else [self._pipe]
        records = self._pipes[-1]
        self._changes = Changes(records_url or url, CHANGED, timeout)
        self._records = RedisRecords(records, self._changes, self._pipe if separate else None)
        self._ledger = RedisLedger(records)
        self._counters = RedisCounters(self._pipe, self._ledger, self._records.version)
        self.limits: Limits = self._counters
        self._workers = Workers(self._pipe, boot)
        self._board = RedisBoard(self._pipe, boot)
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        for pipe in self._pipes:
            pipe.open()
        self._changes.open()
        self._start(self._counters.renew())
        self._start(self._workers.run())
        self._start(self._examine())

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await self._counters.close()
        await self._changes.close()
        with suppress(StoreDown):
            await self._workers.leave()
            await self._board.leave()
        for pipe in self._pipes:
            await pipe.close()

    async def ping(self) -> None:
        for pipe in self._pipes:
            await pipe.call("PING")

    async def verify(self) -> None:
        await self.ping()
        await self._records.look_for_loss()

    @property
    def gateways(self) -> int:
        return self._workers.living

    @property
    def unsettled(self) -> int:
        return self._counters.unsettled

    @property
    def subscribed(self) -> bool:
        return self._changes.subscribed

    def register_lease(self, ask: Ask) -> None:
        self._counters.register_lease(ask)

    def open_leases(self) -> list[Ask]:
        return self._counters.open_leases()

    async def admit(self, ask: Ask) -> Verdict:
        return await self._counters.admit(ask)

    def settle(self, ask: Ask, at: int, used: Sequence[int]) -> asyncio.Future[Any] | None:
        return self._counters.settle(ask, at, used)

    def charge_later(self, ask: Ask, at: int, used: Sequence[int]) -> None:
        self._counters.charge_later(ask, at, used)

    async def get(self, kind: type[R], id: str) -> R | None:
        return await self._records.get(kind, id)

    async def all(self, kind: type[R]) -> list[R]:
        return await self._records.all(kind)

    async def put(self, record: AnyRecord, audit: Audit | None = None) -> None:
        await self._records.put(record, audit)

    async def audit(self, count: int = 100) -> list[Audit]:
        return await self._records.audit(count)

    def watch(self, changed: Callable[[str | None], None]) -> None:
        self._changes.watch(changed)

    async def append(self, batch: str, entries: Sequence[Entry]) -> None:
        await self._ledger.append(batch, entries)

    async def sums(self, first: str, last: str) -> list[Sum]:
        return await self._ledger.sums(first, last)

    async def by_target(self) -> dict[str, tuple[int, int]]:
        return await self._ledger.by_target()

    async def exchange(self, mine: Mapping[str, bytes]) -> dict[str, dict[str, tuple[bytes, float]]]:
        return await self._board.exchange(mine)

    async def report(self, word: bytes) -> None:
        await self._board.report(word)

    async def reports(self) -> dict[str, tuple[bytes, float]]:
        return await self._board.reports()

    def _connected(self) -> None:
        self._counters.connected()

    async def _examine(self) -> None:
        """Warn of a Redis that may throw keys away when its memory is full."""
        for pipe in self._pipes:
            while True:
                with suppress(StoreDown):
                    await pipe.call("PING")
                    break
                await asyncio.sleep(1)
            try:
                found = await pipe.call("CONFIG", "GET", "maxmemory-policy")
            except StoreDown:
                continue  # a managed Redis may not let us look
            if found and found[1] != b"noeviction":
                log.warning(
                    "Redis has maxmemory-policy %s: it may evict keys and counters when its memory is full; "
                    "set it to noeviction",
                    found[1].decode(errors="replace"),
                )

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.create_task(work))
