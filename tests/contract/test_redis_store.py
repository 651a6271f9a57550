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

from gateway.core.types import Ask, Dimension, Entry, KeyRecord, Secret
from gateway.store import LEASE_SECONDS, StoreDown, redis_counters
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
    await store.put(KeyRecord(id=key_id, name="n", created=time.time(), secrets=(Secret(digest="0"),)))
    return key_id


def asked(key_id: str, dimension: Dimension) -> Ask:
    return Ask(uuid.uuid4().hex, ((f"key:{key_id}", 1),), (dimension,))


def lease(key_id: str, limit: int) -> Ask:
    return asked(key_id, Dimension("concurrency", "lease", f"lease:key:{key_id}", limit, LEASE_SECONDS, unit="calls"))


def rate(key_id: str, limit: int, window: float = 3600.0) -> Ask:
    return asked(key_id, Dimension("rpm", "rate", f"rate:key:{key_id}:rpm", limit, window))


def tokens(key_id: str, limit: int, amount: int) -> Ask:
    return asked(key_id, Dimension("tpm", "rate", f"rate:key:{key_id}:tpm", limit, 3600.0, amount, unit="tokens"))


def budget(key_id: str, limit: int, amount: int) -> Ask:
    key = f"budget:key:{key_id}:month:tokens"
    return asked(key_id, Dimension("budget", "budget", key, limit, 60.0, amount, "key", "tokens", "month", "closed"))


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
        await a.admit(budget(key_id, 1, 2))  # so that the budgets are known to be complete
        makes: list[tuple[Callable[[], Ask], int]] = [
            (lambda: rate(key_id, 50), 50),
            (lambda: lease(key_id, 31), 31),
            (lambda: tokens(key_id, 1000, 30), 33),
            (lambda: budget(key_id, 1000, 40), 25),
        ]
        for make, limit in makes:
            verdicts = await asyncio.gather(*(store.admit(make()) for _ in range(40) for store in (a, b, c)))
            assert sum(verdict.denied is None for verdict in verdicts) == limit


async def test_the_first_calls_of_a_fleet_meet_exact_budgets_too(own: RedisServer) -> None:
    """A Redis that nobody has used yet; all gateways find that out at the same time, and all of them serve."""
    async with opened(own.url) as a, opened(own.url) as b, opened(own.url) as c:
        key_id = await keyed(a)
        verdicts = await asyncio.gather(
            *(store.admit(budget(key_id, 1000, 40)) for _ in range(20) for store in (a, b, c))
        )
        assert sum(verdict.denied is None for verdict in verdicts) == 25


async def test_a_change_by_one_gateway_is_stale_to_the_next_call_of_another(redis: RedisServer) -> None:
    async with opened(redis.url, 5) as a, opened(redis.url, 5) as b:
        key_id = await keyed(a)
        assert not (await b.admit(rate(key_id, 9))).stale
        record = await b.get(KeyRecord, key_id)
        assert record is not None
        await a.put(KeyRecord(id=key_id, name="n", created=1, secrets=record.secrets, version=2, revoked=1.0))
        assert (await b.admit(rate(key_id, 9))).stale


async def test_a_slot_of_a_gateway_that_died_comes_back_after_the_lease_time(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_counters, "LEASE_MICROS", 500_000)
    async with opened(redis.url, 5) as store:
        key_id = await keyed(store)
        born = time.monotonic()
        assert (await store.admit(lease(key_id, 1))).denied is None
        denied = await store.admit(lease(key_id, 1))
        assert denied.denied == 0 or time.monotonic() - born > 0.5

        async def free() -> bool:
            return (await store.admit(lease(key_id, 1))).denied is None

        await until(free)
        assert 0.5 <= time.monotonic() - born < 1.5


async def test_what_a_living_call_holds_is_renewed(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_counters, "RENEW_SECONDS", 0.05)
    monkeypatch.setattr(redis_counters, "LEASE_MICROS", 500_000)
    async with opened(redis.url, 5) as store:
        key_id = await keyed(store)
        for make in (lambda: lease(key_id, 1), lambda: budget(key_id, 100, 60)):
            held = make()
            verdict = await store.admit(held)
            assert verdict.denied is None
            await asyncio.sleep(0.9)
            assert (await store.admit(make())).denied == 0
            store.settle(held, verdict.at, (0,))
            await asyncio.sleep(0.2)  # a renewal must not bring it back
            assert (await store.admit(make())).denied is None


async def test_slots_handed_back_just_before_the_end_are_back(redis: RedisServer) -> None:
    async with opened(redis.url, 5) as other:
        key_id = await keyed(other)
        async with opened(redis.url, 5) as store:
            asks = [lease(key_id, 20) for _ in range(20)] + [budget(key_id, 2000, 100) for _ in range(20)]
            granted = await asyncio.gather(*map(store.admit, asks))
            for ask, verdict in zip(asks, granted, strict=True):
                store.settle(ask, verdict.at, (1,))
        spent = await other.admit(budget(key_id, 2000, 1980))
        assert spent.denied is None
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
            lambda: store.get(KeyRecord, key_id),
            lambda: store.all(KeyRecord),
            lambda: store.put(KeyRecord(id="x", name="n", created=1, secrets=())),
            store.audit,
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
        verdict = await store.admit(held)
        assert verdict.denied is None
        own.stop()
        with pytest.raises(StoreDown):
            await store.ping()
        store.settle(held, verdict.at, (1,))  # lost, and no harm done
        own.restart()
        await until(store.ping)
        await keyed(store)
        assert await store.get(KeyRecord, key_id) is None


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
            client.set(f"{{tl}}:lease:key:{key_id}", "not a sorted set")
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


async def frozen(own: RedisServer, store: RedisStore) -> None:
    """Freeze the server until the store has noticed."""
    os.kill(own.process.pid, signal.SIGSTOP)
    with pytest.raises(StoreDown):
        await store.ping()


async def thawed(own: RedisServer, store: RedisStore) -> None:
    os.kill(own.process.pid, signal.SIGCONT)
    await until(store.ping)


async def test_what_could_not_be_settled_is_settled_when_the_server_answers_again(own: RedisServer) -> None:
    async with opened(own.url) as store:
        key_id = await keyed(store)
        asks = [tokens(key_id, 1000, 400), budget(key_id, 1000, 400)]
        granted = [await store.admit(ask) for ask in asks]
        await frozen(own, store)
        for _ in range(2):
            for ask, verdict in zip(asks, granted, strict=True):
                store.settle(ask, verdict.at, (100,))
        await thawed(own, store)

        async def settled() -> bool:
            left = [(await store.admit(ask)).standings[0].remaining for ask in (tokens(key_id, 1000, 0),)]
            return left == [900]

        await until(settled, 3)
        assert (await store.admit(budget(key_id, 1000, 900))).denied is None


async def test_a_slot_that_could_not_be_given_back_is_free_when_the_server_answers_again(own: RedisServer) -> None:
    """At once, not only when its lease ends."""
    async with opened(own.url) as store:
        key_id = await keyed(store)
        held = lease(key_id, 1)
        verdict = await store.admit(held)
        await frozen(own, store)
        store.settle(held, verdict.at, (1,))
        thawing = time.monotonic()
        await thawed(own, store)

        async def free() -> bool:
            return (await store.admit(lease(key_id, 1))).denied is None

        await until(free, LEASE_SECONDS + 5)
        assert time.monotonic() - thawing < 3


async def test_a_settlement_whose_answer_was_lost_counts_once(own: RedisServer) -> None:
    """Sent to a frozen server, which does it when it thaws; sent again after that, as nobody had heard."""
    async with opened(own.url) as store:
        key_id = await keyed(store)
        ask = budget(key_id, 1000, 400)
        verdict = await store.admit(ask)
        os.kill(own.process.pid, signal.SIGSTOP)
        store.settle(ask, verdict.at, (300,))
        with pytest.raises(StoreDown):
            await store.ping()
        await thawed(own, store)
        await asyncio.sleep(0.3)
        assert (await store.admit(budget(key_id, 1000, 0))).standings[0].remaining == 700


async def test_two_stores_settle_the_same_call_once(redis: RedisServer) -> None:
    """A retry of the settlement by another process, as after a crash half-way."""
    async with opened(redis.url, 5) as a, opened(redis.url, 5) as b:
        key_id = await keyed(a)
        ask = budget(key_id, 1000, 400)
        verdict = await a.admit(ask)
        a.settle(ask, verdict.at, (300,))
        await a.ping()
        b.settle(ask, verdict.at, (300,))
        await b.ping()
        assert (await a.admit(budget(key_id, 1000, 0))).standings[0].remaining == 700


async def test_a_call_granted_to_nobody_is_given_back(redis: RedisServer) -> None:
    """The caller had left when the grant came: its slot, tokens and budget are free again at once."""
    async with opened(redis.url, 5) as store:
        key_id = await keyed(store)
        for make in (
            lambda: lease(key_id, 1),
            lambda: tokens(key_id, 100, 100),
            lambda: budget(key_id, 100, 100),
        ):
            task = asyncio.create_task(store.admit(make()))
            await asyncio.sleep(0)  # it has been asked
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await store.ping()
            await store.ping()
            assert (await store.admit(make())).denied is None


async def test_counters_that_were_flushed_are_brought_back_as_far_as_records_and_ledger_know() -> None:
    """Records in another Redis than the counters: a flush of the counters makes no key stale or unknown."""
    with redis_server() as counters, redis_server() as records:
        store = RedisStore(counters.url, timeout=2.0, records_url=records.url)
        await store.open()
        try:
            key_id = await keyed(store)
            assert (await store.admit(budget(key_id, 1000, 10))).denied is None
            now = time.time()
            entry = Entry(call_id="c", time=now, key_id=key_id, tenant="default", route="r", input=300, output=200)
            await store.append("batch-1", [entry])
            with Redis.from_url(counters.url) as client:
                client.flushall()
            assert (await store.admit(rate(key_id, 5))).denied is None
            verdict = await store.admit(budget(key_id, 1000, 10))
            assert verdict.denied is None and verdict.standings[0].remaining == 490
        finally:
            await store.close()


async def test_every_key_lives_in_one_slot_of_a_cluster() -> None:
    with redis_server() as own, Redis.from_url(own.url) as client:
        async with opened(own.url, 5) as store:
            key_id = await keyed(store)
            for make in (lease(key_id, 1), rate(key_id, 5), tokens(key_id, 5, 1), budget(key_id, 5, 1)):
                verdict = await store.admit(make)
                store.settle(make, verdict.at, (2,))
            await store.append(
                "b", [Entry(call_id="c", time=1.0, key_id=key_id, tenant="t", route="r", target="t", input=1)]
            )
            await store.ping()
        keys = [key.decode() for key in client.scan_iter()]
        assert len(keys) > 5
        assert [key for key in keys if not key.startswith("{tl}:")] == []


async def test_nothing_of_a_call_stays_for_ever() -> None:
    """Every counter that calls write expires; only records, the log, the ledger and marks of the store itself stay."""
    with redis_server() as own, Redis.from_url(own.url) as client:
        async with opened(own.url, 5) as store:
            key_id = await keyed(store)
            assert (await store.admit(budget(key_id, 500, 1))).denied is None
            before = set(client.scan_iter())
            for make in (lease(key_id, 1), rate(key_id, 5), tokens(key_id, 5, 1), budget(key_id, 500, 1)):
                verdict = await store.admit(make)
                store.settle(make, verdict.at, (2,))
            await store.ping()
            made = set(client.scan_iter()) - before | {f"{{tl}}:budget:key:{key_id}:month:tokens".encode()}
            assert len(made) > 4
            assert [key for key in made if client.ttl(key) < 0] == []


@pytest.mark.parametrize("make", [lease, lambda key_id, limit: budget(key_id, limit * 100, 100)])
async def test_a_grant_whose_answer_was_lost_holds_nothing_for_long(
    own: RedisServer, make: Callable[[str, int], Ask], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server granted it after the time-out: nobody will settle it, and its reservation must not stay for ever."""
    monkeypatch.setattr(redis_counters, "LEASE_MICROS", 1_000_000)
    async with opened(own.url) as store:
        key_id = await keyed(store)
        warm = make("other", 5)
        await store.admit(Ask(warm.call_id, (), warm.dimensions))  # whatever a first call has to prepare
        os.kill(own.process.pid, signal.SIGSTOP)
        with pytest.raises(StoreDown):
            await store.admit(make(key_id, 1))
        await thawed(own, store)

        async def whole() -> bool:
            return (await store.admit(make(key_id, 1))).denied is None

        await until(whole, 4)
