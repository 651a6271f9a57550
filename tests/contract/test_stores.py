"""One suite for every store: what admission and keys promise, whoever keeps the counters."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from harness.clock import FixedClock
from harness.redis_server import RedisServer

from gateway.core.types import Ask, Dimension, KeyRecord, Limit, Secret
from gateway.store import KeyConflict, Store
from gateway.store.memory import MemoryStore
from gateway.store.redis import RedisStore


class Subject:
    """A store under test, with time that passes: a clock's, or real time."""

    def __init__(self, store: Store, clock: FixedClock | None) -> None:
        self.store, self._clock = store, clock
        self.name = uuid.uuid4().hex[:12]

    async def sleep(self, seconds: float) -> None:
        if self._clock is None:
            await asyncio.sleep(max(0.0, seconds))
        else:
            self._clock.advance(seconds)

    def time(self) -> float:
        return time.monotonic() if self._clock is None else self._clock.time

    async def key(self, version: int = 1) -> KeyRecord:
        record = KeyRecord(
            id=self.name, name="test", created=time.time(), version=version, secrets=(Secret(digest="00"),)
        )
        await self.store.put_key(record)
        return record

    def rate(self, limit: int, window: float = 60.0, name: str = "rpm", amount: int = 1) -> Dimension:
        return Dimension(name, "rate", f"rate:{self.name}:{name}", limit, window, amount)

    def lease(self, limit: int, window: float = 15.0, name: str = "concurrency") -> Dimension:
        return Dimension(name, "lease", f"lease:{self.name}:{name}", limit, window)

    def ask(self, *dimensions: Dimension, version: int = 1, call: str | None = None) -> Ask:
        return Ask(call or uuid.uuid4().hex, self.name, version, dimensions)

    async def grants(self, *dimensions: Dimension, times: int) -> int:
        """How many of so many asks, one after the other, are granted."""
        verdicts = [await self.store.admit(self.ask(*dimensions)) for _ in range(times)]
        return sum(verdict.denied is None and not verdict.stale for verdict in verdicts)


@pytest.fixture(params=["memory", "redis"])
async def subject(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Subject]:
    clock: FixedClock | None = None
    store: Store
    if request.param == "memory":
        clock = FixedClock()
        store = MemoryStore(tmp_path / "keys.json", clock.now)
    else:
        server: RedisServer = request.getfixturevalue("redis")
        store = RedisStore(server.url, timeout=2.0)
    await store.open()
    yield Subject(store, clock)
    await store.close()


async def test_a_rate_grants_as_many_as_its_limit_at_once(subject: Subject) -> None:
    await subject.key()
    assert await subject.grants(subject.rate(5), times=12) == 5


async def test_slots_are_granted_up_to_the_limit(subject: Subject) -> None:
    await subject.key()
    assert await subject.grants(subject.lease(3), times=7) == 3


async def test_a_grant_tells_what_is_left(subject: Subject) -> None:
    await subject.key()
    left = [
        (await subject.store.admit(subject.ask(subject.rate(4, window=400.0), subject.lease(10)))).standings
        for _ in range(4)
    ]
    assert [(rate.remaining, lease.remaining) for rate, lease in left] == [(3, 9), (2, 8), (1, 7), (0, 6)]
    assert left[-1][0].reset == pytest.approx(400, abs=1)
    denied = await subject.store.admit(subject.ask(subject.rate(4, window=400.0), subject.lease(10)))
    assert denied.denied == 0
    assert denied.standings[0].remaining == 0
    assert denied.retry_after == pytest.approx(100, abs=1)


async def test_an_ask_without_limits_is_granted(subject: Subject) -> None:
    await subject.key()
    assert await subject.grants(times=3) == 3


@pytest.mark.parametrize("full_first", [True, False])
async def test_one_denied_dimension_charges_none(subject: Subject, full_first: bool) -> None:
    await subject.key()
    rate, lease = subject.rate(5), subject.lease(1, name="full")
    assert await subject.grants(lease, times=1) == 1
    both = (lease, rate) if full_first else (rate, lease)
    for _ in range(10):
        verdict = await subject.store.admit(subject.ask(*both))
        assert verdict.denied == both.index(lease)
        assert verdict.retry_after > 0
    assert await subject.grants(rate, times=10) == 5
    denied = await subject.store.admit(subject.ask(rate, subject.lease(1, name="free")))
    assert denied.denied == 0
    assert await subject.grants(subject.lease(1, name="free"), times=1) == 1


async def test_the_longest_wait_is_told(subject: Subject) -> None:
    await subject.key()
    short, long = subject.rate(1, window=10.0, name="short"), subject.rate(1, window=100.0, name="long")
    assert await subject.grants(short, long, times=1) == 1
    for order in ((short, long), (long, short)):
        verdict = await subject.store.admit(subject.ask(*order))
        assert verdict.denied == order.index(long)
        assert verdict.retry_after == pytest.approx(100, abs=1)


async def test_an_amount_is_charged_at_once(subject: Subject) -> None:
    await subject.key()
    assert await subject.grants(subject.rate(10, amount=4), times=5) == 2
    assert await subject.grants(subject.rate(10, amount=1), times=5) == 2


@pytest.mark.parametrize("limit", [1, 3])
async def test_retry_after_is_honest(subject: Subject, limit: int) -> None:
    """Denied a tenth before the time told, granted at the time told."""
    window = 1.0 * limit
    await subject.key()
    for attempt in range(5):
        rate = subject.rate(limit, window=window, name=f"rpm{attempt}")
        assert await subject.grants(rate, times=limit) == limit
        before = subject.time()
        verdict = await subject.store.admit(subject.ask(rate))
        told = verdict.retry_after
        assert 0 < told <= window / limit
        await subject.sleep(before + 0.9 * told - subject.time())
        early = await subject.store.admit(subject.ask(rate))
        if subject.time() - before >= told:
            continue  # this machine was too busy to ask in time
        assert early.denied == 0
        asked = subject.time()
        await subject.sleep(early.retry_after)
        await subject.sleep(asked + early.retry_after - subject.time())
        assert (await subject.store.admit(subject.ask(rate))).denied is None
        assert (await subject.store.admit(subject.ask(rate))).denied == 0
        return
    pytest.fail("this machine is too busy to measure tenths of a second")


async def test_a_bucket_is_whole_again_after_its_window(subject: Subject) -> None:
    await subject.key()
    rate = subject.rate(4, window=0.4)
    assert await subject.grants(rate, times=4) == 4
    await subject.sleep(0.45)
    assert await subject.grants(subject.rate(4, window=4000.0), times=8) == 4


async def test_a_released_slot_is_free_at_once(subject: Subject) -> None:
    await subject.key()
    lease = subject.lease(2)
    asks = [subject.ask(lease), subject.ask(lease)]
    for ask in asks:
        assert (await subject.store.admit(ask)).denied is None
    assert (await subject.store.admit(subject.ask(lease))).denied == 0
    subject.store.release(asks[0])
    assert await subject.grants(lease, times=3) == 1


async def test_releasing_twice_frees_one_slot(subject: Subject) -> None:
    await subject.key()
    lease = subject.lease(2)
    asks = [subject.ask(lease), subject.ask(lease)]
    for ask in asks:
        await subject.store.admit(ask)
    for _ in range(3):
        subject.store.release(asks[0])
    assert await subject.grants(lease, times=3) == 1
    subject.store.release(asks[0])
    assert await subject.grants(lease, times=1) == 0


async def test_releasing_what_was_denied_frees_nothing(subject: Subject) -> None:
    await subject.key()
    lease = subject.lease(1)
    assert await subject.grants(lease, times=1) == 1
    denied = subject.ask(lease)
    assert (await subject.store.admit(denied)).denied == 0
    subject.store.release(denied)
    assert await subject.grants(lease, times=1) == 0


@pytest.mark.parametrize("version", [1, 3])
async def test_another_version_of_the_key_is_stale_and_charges_nothing(subject: Subject, version: int) -> None:
    await subject.key()
    await subject.key(version=2)
    rate, lease = subject.rate(1), subject.lease(1)
    for _ in range(3):
        verdict = await subject.store.admit(subject.ask(rate, lease, version=version))
        assert verdict.stale
    assert (await subject.store.admit(subject.ask(rate, lease, version=2))).denied is None


async def test_an_unknown_key_is_stale(subject: Subject) -> None:
    assert (await subject.store.admit(subject.ask(subject.rate(1)))).stale
    assert await subject.store.key(subject.name) is None


async def test_a_record_comes_back_as_it_was_put(subject: Subject) -> None:
    record = KeyRecord(
        id=subject.name,
        name="Zoë's \u2028 key",
        secrets=(Secret(digest="ab", pepper=2, not_after=17.25), Secret(digest="cd")),
        created=time.time(),
        tenant="tenant",
        models=("a*", "b"),
        limit=Limit(rpm=3, concurrency=4),
        expires=1e12,
        revoked=12.5,
    )
    await subject.store.put_key(record)
    assert await subject.store.key(subject.name) == record
    assert record in await subject.store.keys()


@pytest.mark.parametrize("version", [0, 2, 7])
async def test_a_new_key_begins_with_version_one(subject: Subject, version: int) -> None:
    with pytest.raises(KeyConflict):
        await subject.key(version=version)
    assert await subject.store.key(subject.name) is None


async def test_a_change_must_be_one_version_above(subject: Subject) -> None:
    await subject.key()
    for version in (0, 1, 3):
        with pytest.raises(KeyConflict):
            await subject.key(version=version)
    second = await subject.key(version=2)
    assert await subject.store.key(subject.name) == second


async def test_of_many_changes_at_once_one_is_taken(subject: Subject) -> None:
    await subject.key()
    results = await asyncio.gather(*(subject.key(version=2) for _ in range(20)), return_exceptions=True)
    assert sum(isinstance(result, KeyRecord) for result in results) == 1
    assert sum(isinstance(result, KeyConflict) for result in results) == 19


async def test_keys_are_listed_oldest_first(subject: Subject) -> None:
    created = {f"{subject.name[:9]}{n:03}": 1000.0 + (n * 7) % 10 for n in range(10)}
    for key_id, at in created.items():
        await subject.store.put_key(KeyRecord(id=key_id, name=key_id, created=at, secrets=(Secret(digest="0"),)))
    listed = [record.id for record in await subject.store.keys() if record.id in created]
    assert listed == sorted(created, key=created.__getitem__)


async def test_a_hundred_asks_at_once_get_exactly_the_limit(subject: Subject) -> None:
    await subject.key()
    for dimension, limit in ((subject.rate(37, window=3600.0), 37), (subject.lease(23), 23)):
        verdicts = await asyncio.gather(*(subject.store.admit(subject.ask(dimension)) for _ in range(100)))
        assert sum(verdict.denied is None for verdict in verdicts) == limit


@pytest.mark.parametrize("ticks", range(6))
async def test_a_cancelled_ask_leaks_no_slot(subject: Subject, ticks: int) -> None:
    await subject.key()
    lease = subject.lease(5, window=60.0)
    tasks = [asyncio.create_task(subject.store.admit(subject.ask(lease))) for _ in range(5)]
    for _ in range(ticks):
        await asyncio.sleep(0.0002 * ticks)
    cancelled = [task for task in tasks if not task.done() and task.cancel()]
    done = await asyncio.gather(*tasks, return_exceptions=True)
    held = sum(not isinstance(result, BaseException) for result in done)
    assert held == 5 - len(cancelled)
    for _ in range(3):
        await subject.store.ping()  # late answers have come by now, and what they granted has gone back
    assert await subject.grants(lease, times=9) == 5 - held


async def test_counters_of_keys_are_their_own(subject: Subject) -> None:
    await subject.key()
    assert await subject.grants(subject.rate(1, name="one"), times=2) == 1
    assert await subject.grants(subject.rate(1, name="other"), times=2) == 1
