"""The store that many gateways share, in one Redis or in two: counters in the one, records and ledger in the other."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from gateway.store import StoreDown
from gateway.store.redis.batches import RedisBatches
from gateway.store.redis.board import RedisBoard
from gateway.store.redis.connection import Pipe
from gateway.store.redis.counters import RedisCounters
from gateway.store.redis.examined import policy_of
from gateway.store.redis.homes import RedisHomes
from gateway.store.redis.invalidation import Changes
from gateway.store.redis.ledger import RedisLedger
from gateway.store.redis.liveness import Workers
from gateway.store.redis.records import CHANGED, RedisRecords
from gateway.store.seen import NO_EVICTION

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
        self.records = RedisRecords(records, self._changes, self._pipe if separate else None)
        self.ledger = RedisLedger(records)
        self.limits = RedisCounters(self._pipe, self.ledger, self.records)
        self._workers = Workers(self._pipe, boot)
        self.board = RedisBoard(self._pipe, boot)
        self.homes = RedisHomes(records)
        self.batches = RedisBatches(records, self._changes, boot)
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        for pipe in self._pipes:
            pipe.open()
        self._changes.open()
        self._start(self.limits.renew())
        self._start(self._workers.run())
        self._start(self._examine())

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await self.limits.close()
        await self._changes.close()
        with suppress(StoreDown):
            await self._workers.leave()
            await self.board.leave()
        for pipe in self._pipes:
            await pipe.close()

    async def ping(self) -> None:
        for pipe in self._pipes:
            await pipe.call("PING")

    @property
    def has_answered(self) -> bool:
        return all(pipe.has_answered for pipe in self._pipes)

    async def verify(self) -> None:
        await self.ping()
        await self.records.look_for_loss()

    @property
    def gateways(self) -> int:
        return self._workers.living

    def _connected(self) -> None:
        self.limits.connected()

    async def _examine(self) -> None:
        """Warn of a Redis that may throw keys away when its memory is full."""
        for pipe in self._pipes:
            while True:
                with suppress(StoreDown):
                    await pipe.call("PING")
                    break
                await asyncio.sleep(1)
            try:  # CONFIG would tell passwords too, and is kept from users
                told = await pipe.call("INFO", "memory")
            except StoreDown:
                continue  # a managed Redis may not let us look
            if (policy := policy_of(told)) not in ("", NO_EVICTION):
                log.warning(
                    "Redis has maxmemory-policy %s: it may evict keys and counters when its memory is full; "
                    "set it to noeviction",
                    policy,
                )

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.create_task(work))
