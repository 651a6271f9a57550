"""What only the shared store promises: exactness between gateways, outages, restarts, leases of the dead."""

from __future__ import annotations

import asyncio
import os
import signal
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest
from harness.redis_server import RedisServer, redis_server
from redis import Redis

from gateway.core.types import Ask, Dimension, KeyRecord, Secret
from gateway.store import StoreDown
from gateway.store import redis as redis_store
from gateway.store.redis import RedisStore

TIMEOUT = 0.25
SLACK = 0.35
"""Seconds that a busy machine may add."""


@pytest.fixture
def own() -> Iterator[RedisServer]:
    """A server to do harm to."""
    with redis_server() as server:
        yield server
        server.process.send_signal(signal.SIGCONT)


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
    await store.put_key(KeyRecord(id=key_id, name="n", created=time.time(), secrets=(Secret(digest="0"),)))
    return key_id


def lease(key_id: str, limit: int, window: float = 15.0) -> Ask:
    dimension = Dimension("concurrency", "lease", f"lease:key:{key_id}", limit, window)
    return Ask(uuid.uuid4().hex, key_id, 1, (dimension,))


def rate(key_id: str, limit: int, window: float = 3600.0) -> Ask:
    return Ask(uuid.uuid4().hex, key_id, 1, (Dimension("rpm", "rate", f"rate:key:{key_id}:rpm", limit, window),))


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


async def test_many_gateways_together_grant_exactly_the_limit(redis: RedisServer) -> None:
    async with opened(redis.url, 5) as a, opened(redis.url, 5) as b, opened(redis.url, 5) as c:
        key_id = await keyed(a)
        for make, limit in ((rate, 50), (lease, 31)):
            verdicts = await asyncio.gather(
                *(store.admit(make(key_id, limit)) for _ in range(40) for store in (a, b, c))
            )
            assert sum(verdict.denied is None for verdict in verdicts) == limit


async def test_a_change_by_one_gateway_is_stale_to_the_next_call_of_another(redis: RedisServer) -> None:
    async with opened(redis.url, 5) as a, opened(redis.url, 5) as b:
        key_id = await keyed(a)
        assert not (await b.admit(rate(key_id, 9))).stale
        record = await b.key(key_id)
        assert record is not None
        await a.put_key(KeyRecord(id=key_id, name="n", created=1, secrets=record.secrets, version=2, revoked=1.0))
        assert (await b.admit(rate(key_id, 9))).stale


async def test_a_slot_of_a_gateway_that_died_comes_back_after_its_window(redis: RedisServer) -> None:
    window = 0.5
    async with opened(redis.url, 5) as store:
        key_id = await keyed(store)
        born = time.monotonic()
        assert (await store.admit(lease(key_id, 1, window))).denied is None
        denied = await store.admit(lease(key_id, 1, window))
        assert denied.denied == 0 or time.monotonic() - born > window

        async def free() -> bool:
            return (await store.admit(lease(key_id, 1, window))).denied is None

        await until(free)
        assert window <= time.monotonic() - born < window + 1


async def test_a_slot_of_a_living_call_is_renewed(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_store, "RENEW_SECONDS", 0.05)
    async with opened(redis.url, 5) as store:
        key_id = await keyed(store)
        held = lease(key_id, 1, 0.5)
        assert (await store.admit(held)).denied is None
        await asyncio.sleep(0.9)
        assert (await store.admit(lease(key_id, 1, 0.5))).denied == 0
        store.release(held)
        await asyncio.sleep(0.2)  # a renewal must not bring it back
        assert (await store.admit(lease(key_id, 1, 0.5))).denied is None


async def test_slots_handed_back_just_before_the_end_are_back(redis: RedisServer) -> None:
    async with opened(redis.url, 5) as other:
        key_id = await keyed(other)
        async with opened(redis.url, 5) as store:
            asks = [lease(key_id, 20) for _ in range(20)]
            await asyncio.gather(*map(store.admit, asks))
            for ask in asks:
                store.release(ask)
        verdicts = [await other.admit(lease(key_id, 20)) for _ in range(20)]
        assert all(verdict.denied is None for verdict in verdicts)


async def test_scripts_are_sent_again_to_a_server_that_forgot_them(redis: RedisServer) -> None:
    with Redis.from_url(redis.url) as client:
        async with opened(redis.url, 5) as store:
            key_id = await keyed(store)
            for n in range(1, 5):
                client.script_flush()
                assert (await store.admit(rate(key_id, 3))).denied == (None if n <= 3 else 0)
            client.script_flush()
            verdicts = await asyncio.gather(*(store.admit(lease(key_id, 7)) for _ in range(30)))
            assert sum(verdict.denied is None for verdict in verdicts) == 7
            client.script_flush()
            await keyed(store)


async def test_a_frozen_server_is_down_within_the_timeout(own: RedisServer) -> None:
    async with opened(own.url) as store:
        key_id = await keyed(store)
        os.kill(own.process.pid, signal.SIGSTOP)
        for attempt in (
            lambda: store.admit(rate(key_id, 5)),
            store.ping,
            lambda: store.key(key_id),
            store.keys,
            lambda: store.put_key(KeyRecord(id="x", name="n", created=1, secrets=())),
        ):
            started = time.monotonic()
            with pytest.raises(StoreDown):
                await attempt()
            assert time.monotonic() - started < TIMEOUT + SLACK


async def test_all_asks_in_flight_fail_within_the_timeout(own: RedisServer) -> None:
    async with opened(own.url) as store:
        key_id = await keyed(store)
        os.kill(own.process.pid, signal.SIGSTOP)
        started = time.monotonic()
        tasks = []
        for _ in range(10):
            tasks += [asyncio.create_task(store.admit(lease(key_id, 99))) for _ in range(10)]
            await asyncio.sleep(0.01)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, StoreDown) for result in results)
        assert time.monotonic() - started < 0.1 + TIMEOUT + SLACK


async def test_a_server_that_thaws_is_used_again(own: RedisServer) -> None:
    async with opened(own.url) as store:
        key_id = await keyed(store)
        os.kill(own.process.pid, signal.SIGSTOP)
        with pytest.raises(StoreDown):
            await store.ping()
        os.kill(own.process.pid, signal.SIGCONT)
        await until(store.ping)
        assert (await store.admit(rate(key_id, 5))).denied is None


async def test_a_server_that_is_restarted_is_used_again(own: RedisServer) -> None:
    async with opened(own.url) as store:
        key_id = await keyed(store)
        held = lease(key_id, 1)
        assert (await store.admit(held)).denied is None
        own.stop()
        with pytest.raises(StoreDown):
            await store.ping()
        store.release(held)  # lost, and no harm done
        own.restart()
        await until(store.ping)
        assert await store.key(key_id) is None
        await keyed(store)


async def test_a_store_opens_before_its_server(own: RedisServer) -> None:
    own.stop()
    async with opened(own.url) as store:
        with pytest.raises(StoreDown):
            await store.ping()
        own.restart()
        await until(store.ping)


async def test_a_server_that_became_a_replica_is_down(own: RedisServer) -> None:
    async with opened(own.url) as store:
        key_id = await keyed(store)
        with Redis.from_url(own.url) as client:
            client.execute_command("REPLICAOF", "127.0.0.1", "1")
            with pytest.raises(StoreDown):
                await store.admit(rate(key_id, 5))
            client.execute_command("REPLICAOF", "NO", "ONE")
        await until(lambda: store.admit(rate(key_id, 5)))


async def test_a_key_of_the_wrong_kind_is_one_failed_ask(redis: RedisServer) -> None:
    async with opened(redis.url, 5) as store:
        key_id = await keyed(store)
        with Redis.from_url(redis.url) as client:
            client.set("{tl}:lease:key:" + key_id, "not a sorted set")
        spoilt, good = await asyncio.gather(
            store.admit(lease(key_id, 1)), store.admit(rate(key_id, 1)), return_exceptions=True
        )
        assert isinstance(spoilt, StoreDown)
        assert not isinstance(good, BaseException) and good.denied is None


@pytest.mark.parametrize("harm", ["kill", "freeze"])
async def test_closing_while_the_server_is_gone_is_quick_and_quiet(own: RedisServer, harm: str) -> None:
    store = RedisStore(own.url, timeout=TIMEOUT)
    await store.open()
    await store.ping()
    if harm == "kill":
        own.stop()
    else:
        os.kill(own.process.pid, signal.SIGSTOP)
    started = time.monotonic()
    await store.close()
    assert time.monotonic() - started < 2 * TIMEOUT + SLACK


async def test_closing_a_store_that_was_never_opened() -> None:
    await RedisStore("redis://127.0.0.1:1/0", timeout=TIMEOUT).close()
