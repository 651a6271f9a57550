"""Asks of one dimension on Redis stores, and Redis servers that freeze."""

from __future__ import annotations

import asyncio
import os
import signal
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from harness.redis_server import RedisServer

from gateway.core.types import Ask, Dimension, KeyRecord, Plan, Secret
from gateway.store import LEASE_SECONDS, StoreDown
from gateway.store.redis.store import RedisStore

TIMEOUT = 0.25


@asynccontextmanager
async def opened(url: str, timeout: float = TIMEOUT) -> AsyncIterator[RedisStore]:
    store = RedisStore(url, timeout=timeout)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def keyed(store: RedisStore) -> str:
    key_id = uuid.uuid4().hex[:12]
    await store.records.put(KeyRecord(id=key_id, name="n", created=time.time(), secrets=(Secret(digest="0"),)))
    return key_id


def asked(key_id: str, dimension: Dimension, amount: int = 1) -> Ask:
    return Ask(uuid.uuid4().hex, Plan(((f"key:{key_id}", 1),), (dimension,)), (amount,))


def lease(key_id: str, limit: int) -> Ask:
    return asked(key_id, Dimension("concurrency", "lease", f"lease:key:{key_id}", limit, LEASE_SECONDS, unit="calls"))


def rate(key_id: str, limit: int, window: float = 3600.0) -> Ask:
    return asked(key_id, Dimension("rpm", "rate", f"rate:key:{key_id}:rpm", limit, window))


def tokens(key_id: str, limit: int, amount: int) -> Ask:
    return asked(key_id, Dimension("tpm", "rate", f"rate:key:{key_id}:tpm", limit, 3600.0, unit="tokens"), amount)


def budget(key_id: str, limit: int, amount: int) -> Ask:
    key = f"budget:key:{key_id}:month:tokens"
    return asked(key_id, Dimension("budget", "budget", key, limit, 60.0, "key", "tokens", "month", "closed"), amount)


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait until calling `condition` neither raises nor gives something false."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            found = condition()
            if asyncio.iscoroutine(found):
                found = await found
            if found is not False:
                return
        except StoreDown:
            pass
        assert time.monotonic() < deadline, "it did not come to pass"
        await asyncio.sleep(0.01)


async def frozen(own: RedisServer, store: RedisStore) -> None:
    """Freeze the server until the store has noticed."""
    os.kill(own.process.pid, signal.SIGSTOP)
    with pytest.raises(StoreDown):
        await store.ping()


async def thawed(own: RedisServer, store: RedisStore) -> None:
    os.kill(own.process.pid, signal.SIGCONT)
    await until(store.ping)
