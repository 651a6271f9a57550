"""Redis freezes, dies, restarts, forgets: what the store says meanwhile, and that nothing is lost or counted twice."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable

import pytest
from contract.asks import TIMEOUT, budget, frozen, keyed, lease, opened, rate, thawed, tokens, until
from harness.redis_server import RedisServer, redis_server

from gateway.core.types import Ask, Entry, KeyRecord, Plan
from gateway.store import LEASE_SECONDS, StoreDown
from gateway.store.redis import counters as redis_counters
from gateway.store.redis.store import RedisStore

AT_ONCE = 40 * TIMEOUT
"""Seconds in which no machine is too busy to have given up, once; when it gives up is tested in virtual time."""


async def test_a_frozen_server_is_down(own: RedisServer) -> None:
    async with opened(own.url) as store:
        key_id = await keyed(store)
        os.kill(own.process.pid, signal.SIGSTOP)
        for attempt in (
            lambda: store.limits.admit(rate(key_id, 5)),
            store.ping,
            lambda: store.records.get(KeyRecord, key_id),
            lambda: store.records.all(KeyRecord),
            lambda: store.records.put(KeyRecord(id="x", name="n", created=1, secrets=())),
            store.records.audit,
        ):
            with pytest.raises(StoreDown):
                await attempt()


async def test_all_asks_in_flight_fail_together(own: RedisServer) -> None:
    async with opened(own.url) as store:
        key_id = await keyed(store)
        os.kill(own.process.pid, signal.SIGSTOP)
        started = time.monotonic()
        tasks = []
        for _ in range(10):
            tasks += [asyncio.create_task(store.limits.admit(lease(key_id, 99))) for _ in range(10)]
            await asyncio.sleep(0.01)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, StoreDown) for result in results)
        assert time.monotonic() - started < AT_ONCE, "one after the other they take 100 time-outs"


async def test_a_server_that_thaws_is_used_again(own: RedisServer) -> None:
    async with opened(own.url) as store:
        key_id = await keyed(store)
        os.kill(own.process.pid, signal.SIGSTOP)
        with pytest.raises(StoreDown):
            await store.ping()
        os.kill(own.process.pid, signal.SIGCONT)
        await until(store.ping)
        assert (await store.limits.admit(rate(key_id, 5))).denied is None


async def test_a_server_that_is_restarted_is_used_again(own: RedisServer) -> None:
    async with opened(own.url) as store:
        key_id = await keyed(store)
        held = lease(key_id, 1)
        verdict = await store.limits.admit(held)
        assert verdict.denied is None
        own.stop()
        with pytest.raises(StoreDown):
            await store.ping()
        store.limits.settle(held, verdict.at, (1,))  # lost, and no harm done
        own.restart()
        await until(store.ping)
        await keyed(store)
        assert await store.records.get(KeyRecord, key_id) is None


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
        own.ask("REPLICAOF", "127.0.0.1", "1")
        with pytest.raises(StoreDown):
            await store.limits.admit(rate(key_id, 5))
        own.ask("REPLICAOF", "NO", "ONE")
        await until(lambda: store.limits.admit(rate(key_id, 5)))


async def test_what_could_not_be_settled_is_settled_when_the_server_answers_again(own: RedisServer) -> None:
    async with opened(own.url) as store:
        key_id = await keyed(store)
        asks = [tokens(key_id, 1000, 400), budget(key_id, 1000, 400)]
        granted = [await store.limits.admit(ask) for ask in asks]
        await frozen(own, store)
        for _ in range(2):
            for ask, verdict in zip(asks, granted, strict=True):
                store.limits.settle(ask, verdict.at, (100,))
        await thawed(own, store)

        async def settled() -> bool:
            left = [(await store.limits.admit(ask)).standings[0].remaining for ask in (tokens(key_id, 1000, 0),)]
            return left == [900]

        await until(settled)
        assert (await store.limits.admit(budget(key_id, 1000, 900))).denied is None


async def test_a_slot_that_could_not_be_given_back_is_free_when_the_server_answers_again(own: RedisServer) -> None:
    """At once, not only when its lease ends."""
    async with opened(own.url) as store:
        key_id = await keyed(store)
        held = lease(key_id, 1)
        granted = time.monotonic()
        verdict = await store.limits.admit(held)
        await frozen(own, store)
        store.limits.settle(held, verdict.at, (1,))
        await thawed(own, store)

        async def free() -> bool:
            return (await store.limits.admit(lease(key_id, 1))).denied is None

        await until(free, LEASE_SECONDS + 5)
        assert time.monotonic() - granted < LEASE_SECONDS


async def test_a_settlement_whose_answer_was_lost_counts_once(own: RedisServer) -> None:
    """Sent to a frozen server, which does it when it thaws; sent again after that, as nobody had heard."""
    async with opened(own.url) as store:
        key_id = await keyed(store)
        asks = [budget(key_id, 2000, 400) for _ in range(2)]
        first, second = [await store.limits.admit(ask) for ask in asks]
        store.limits.settle(asks[0], first.at, (1000,))  # from here on the server knows the script
        await store.ping()
        os.kill(own.process.pid, signal.SIGSTOP)
        store.limits.settle(asks[1], second.at, (300,))
        with pytest.raises(StoreDown):
            await store.ping()
        await thawed(own, store)

        async def counted() -> bool:
            return (await store.limits.admit(budget(key_id, 2000, 0))).standings[0].remaining <= 700

        await until(counted)
        await asyncio.sleep(0.3)
        assert (await store.limits.admit(budget(key_id, 2000, 0))).standings[0].remaining == 700


async def test_counters_that_were_flushed_are_brought_back_as_far_as_records_and_ledger_know() -> None:
    """Records in another Redis than the counters: a flush of the counters makes no key stale or unknown."""
    with redis_server() as counters, redis_server() as records:
        store = RedisStore(counters.url, timeout=2.0, records_url=records.url)
        await store.open()
        try:
            key_id = await keyed(store)
            assert (await store.limits.admit(budget(key_id, 1000, 10))).denied is None
            now = time.time()
            entry = Entry(call_id="c", time=now, key_id=key_id, tenant="default", route="r", input=300, output=200)
            await store.ledger.append("batch-1", [entry])
            counters.ask("FLUSHALL")
            assert (await store.limits.admit(rate(key_id, 5))).denied is None
            verdict = await store.limits.admit(budget(key_id, 1000, 10))
            assert verdict.denied is None and verdict.standings[0].remaining == 490
        finally:
            await store.close()


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
    assert time.monotonic() - started < AT_ONCE


async def test_closing_a_store_that_was_never_opened() -> None:
    await RedisStore("redis://127.0.0.1:1/0", timeout=TIMEOUT).close()


@pytest.mark.parametrize("make", [lease, lambda key_id, limit: budget(key_id, limit * 100, 100)])
async def test_a_grant_whose_answer_was_lost_holds_nothing_for_long(
    own: RedisServer, make: Callable[[str, int], Ask], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server granted it after the time-out: nobody will settle it, and its reservation must not stay for ever."""
    monkeypatch.setattr(redis_counters, "LEASE_MICROS", 1_000_000)
    async with opened(own.url) as store:
        key_id = await keyed(store)
        warm = make("other", 5)
        await store.limits.admit(
            Ask(warm.call_id, Plan((), warm.plan.dimensions), warm.amounts)
        )  # whatever a first call has to prepare
        os.kill(own.process.pid, signal.SIGSTOP)
        with pytest.raises(StoreDown):
            await store.limits.admit(make(key_id, 1))
        await thawed(own, store)

        async def whole() -> bool:
            return (await store.limits.admit(make(key_id, 1))).denied is None

        await until(whole)
