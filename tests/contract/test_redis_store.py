"""What only the shared store promises: exactness between gateways, leases of the dead, nothing left behind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest
from contract.asks import budget, keyed, lease, opened, rate, tokens, until
from harness.redis_server import RedisServer

from gateway.core.types import Ask, Entry, KeyRecord
from gateway.store import LEASE_SECONDS, StoreDown
from gateway.store.redis import counters


async def test_many_gateways_together_grant_exactly_the_limit(redis: RedisServer) -> None:
    async with opened(redis.url, 5) as a, opened(redis.url, 5) as b, opened(redis.url, 5) as c:
        key_id = await keyed(a)
        await a.limits.admit(budget(key_id, 1, 2))  # so that the budgets are known to be complete
        makes: list[tuple[Callable[[], Ask], int]] = [
            (lambda: rate(key_id, 50), 50),
            (lambda: lease(key_id, 31), 31),
            (lambda: tokens(key_id, 1000, 30), 33),
            (lambda: budget(key_id, 1000, 40), 25),
        ]
        for make, limit in makes:
            verdicts = await asyncio.gather(*(store.limits.admit(make()) for _ in range(40) for store in (a, b, c)))
            assert sum(verdict.denied is None for verdict in verdicts) == limit


async def test_the_first_calls_of_a_fleet_meet_exact_budgets_too(own: RedisServer) -> None:
    """A Redis that nobody has used yet; all gateways find that out at the same time, and all of them serve."""
    async with opened(own.url) as a, opened(own.url) as b, opened(own.url) as c:
        key_id = await keyed(a)
        verdicts = await asyncio.gather(
            *(store.limits.admit(budget(key_id, 1000, 40)) for _ in range(20) for store in (a, b, c))
        )
        assert sum(verdict.denied is None for verdict in verdicts) == 25


async def test_a_change_by_one_gateway_is_stale_to_the_next_call_of_another(redis: RedisServer) -> None:
    async with opened(redis.url, 5) as a, opened(redis.url, 5) as b:
        key_id = await keyed(a)
        assert not (await b.limits.admit(rate(key_id, 9))).stale
        record = await b.records.get(KeyRecord, key_id)
        assert record is not None
        await a.records.put(KeyRecord(id=key_id, name="n", created=1, secrets=record.secrets, version=2, revoked=1.0))
        assert (await b.limits.admit(rate(key_id, 9))).stale


async def test_a_slot_of_a_gateway_that_died_comes_back_after_the_lease_time(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counters, "LEASE_MICROS", 500_000)
    async with opened(redis.url, 5) as store:
        key_id = await keyed(store)
        born = time.monotonic()
        assert (await store.limits.admit(lease(key_id, 1))).denied is None
        denied = await store.limits.admit(lease(key_id, 1))
        assert denied.denied == 0 or time.monotonic() - born > 0.5

        async def free() -> bool:
            return (await store.limits.admit(lease(key_id, 1))).denied is None

        await until(free)
        assert 0.5 <= time.monotonic() - born < LEASE_SECONDS


async def test_what_a_living_call_holds_is_renewed(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "RENEW_SECONDS", 0.05)
    monkeypatch.setattr(counters, "LEASE_MICROS", 1_500_000)
    async with opened(redis.url, 5) as store:
        key_id = await keyed(store)
        makes: list[Callable[[], Ask]] = [lambda: lease(key_id, 1), lambda: budget(key_id, 100, 60)]
        held = [(ask, await store.limits.admit(ask)) for ask in (make() for make in makes)]
        assert [verdict.denied for _, verdict in held] == [None, None]
        await asyncio.sleep(2)
        for make in makes:
            assert (await store.limits.admit(make())).denied == 0
        for ask, verdict in held:
            store.limits.settle(ask, verdict.at, (0,))
        await asyncio.sleep(0.2)  # a renewal must not bring it back
        for make in makes:
            assert (await store.limits.admit(make())).denied is None


async def test_slots_handed_back_just_before_the_end_are_back(redis: RedisServer) -> None:
    async with opened(redis.url, 5) as other:
        key_id = await keyed(other)
        async with opened(redis.url, 5) as store:
            asks = [lease(key_id, 20) for _ in range(20)] + [budget(key_id, 2000, 100) for _ in range(20)]
            granted = await asyncio.gather(*map(store.limits.admit, asks))
            for ask, verdict in zip(asks, granted, strict=True):
                store.limits.settle(ask, verdict.at, (1,))
        spent = await other.limits.admit(budget(key_id, 2000, 1980))
        assert spent.denied is None
        verdicts = [await other.limits.admit(lease(key_id, 20)) for _ in range(20)]
        assert all(verdict.denied is None for verdict in verdicts)


async def test_scripts_are_sent_again_to_a_server_that_forgot_them(redis: RedisServer) -> None:
    async with opened(redis.url, 5) as store:
        key_id = await keyed(store)
        for n in range(1, 5):
            redis.ask("SCRIPT", "FLUSH")
            assert (await store.limits.admit(rate(key_id, 3))).denied == (None if n <= 3 else 0)
        redis.ask("SCRIPT", "FLUSH")
        verdicts = await asyncio.gather(*(store.limits.admit(lease(key_id, 7)) for _ in range(30)))
        assert sum(verdict.denied is None for verdict in verdicts) == 7
        redis.ask("SCRIPT", "FLUSH")
        await keyed(store)


async def test_a_key_of_the_wrong_kind_is_one_failed_ask(redis: RedisServer) -> None:
    async with opened(redis.url, 5) as store:
        key_id = await keyed(store)
        redis.ask("SET", f"{{tl}}:lease:key:{key_id}", "not a sorted set")
        spoilt, good = await asyncio.gather(
            store.limits.admit(lease(key_id, 1)), store.limits.admit(rate(key_id, 1)), return_exceptions=True
        )
        assert isinstance(spoilt, StoreDown)
        assert not isinstance(good, BaseException) and good.denied is None


async def test_two_stores_settle_the_same_call_once(redis: RedisServer) -> None:
    """A retry of the settlement by another process, as after a crash half-way."""
    async with opened(redis.url, 5) as a, opened(redis.url, 5) as b:
        key_id = await keyed(a)
        ask = budget(key_id, 1000, 400)
        verdict = await a.limits.admit(ask)
        a.limits.settle(ask, verdict.at, (300,))
        await a.ping()
        b.limits.settle(ask, verdict.at, (300,))
        await b.ping()
        assert (await a.limits.admit(budget(key_id, 1000, 0))).standings[0].remaining == 700


async def test_a_call_granted_to_nobody_is_given_back(redis: RedisServer) -> None:
    """The caller had left when the grant came: its slot, tokens and budget are free again at once."""
    async with opened(redis.url, 5) as store:
        key_id = await keyed(store)
        makes: list[Callable[[], Ask]] = [
            lambda: lease(key_id, 1),
            lambda: tokens(key_id, 100, 100),
            lambda: budget(key_id, 100, 100),
        ]
        for make in makes:
            task = asyncio.create_task(store.limits.admit(make()))
            await asyncio.sleep(0)  # it has been asked
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await store.ping()
            await store.ping()
            assert (await store.limits.admit(make())).denied is None


async def test_every_key_lives_in_one_slot_of_a_cluster(own: RedisServer) -> None:
    async with opened(own.url, 5) as store:
        key_id = await keyed(store)
        for make in (lease(key_id, 1), rate(key_id, 5), tokens(key_id, 5, 1), budget(key_id, 5, 1)):
            verdict = await store.limits.admit(make)
            store.limits.settle(make, verdict.at, (2,))
        await store.ledger.append(
            "b", [Entry(call_id="c", time=1.0, key_id=key_id, tenant="t", route="r", target="t", input=1)]
        )
        await store.ping()
    keys = own.keys("*")
    assert len(keys) > 5
    assert [key for key in keys if not key.startswith("{tl}:")] == []


async def test_nothing_of_a_call_stays_for_ever(own: RedisServer) -> None:
    """Every counter that calls write expires; only records, the log, the ledger and marks of the store itself stay."""
    async with opened(own.url, 5) as store:
        key_id = await keyed(store)
        assert (await store.limits.admit(budget(key_id, 500, 1))).denied is None
        before = set(own.keys("*"))
        for make in (lease(key_id, 1), rate(key_id, 5), tokens(key_id, 5, 1), budget(key_id, 500, 1)):
            verdict = await store.limits.admit(make)
            store.limits.settle(make, verdict.at, (2,))
        await store.ping()
        made = {*own.keys("*")} - before | {f"{{tl}}:budget:key:{key_id}:month:tokens"}
        assert len(made) > 4
        assert [key for key in made if own.ask("TTL", key) < 0] == []
