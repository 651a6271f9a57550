"""Records in memory: one look-up for many calls, no old record after a change, bounded, and stale when it must be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from harness.clock import FixedClock
from harness.keyrings import PEPPERS, Records, turns

from gateway.admin import Registrar
from gateway.auth.cache import DEAF_SECONDS, FRESH_SECONDS, STALE_SECONDS, Cache
from gateway.core.types import KeyRecord, Tenant
from gateway.store import StoreDown
from gateway.store.local import LocalStore


class Bench:
    def __init__(self, folder: Path) -> None:
        self.clock, self.records = FixedClock(), Records(LocalStore(folder / "keys.json").records)
        self.cache = Cache(self.records, KeyRecord, self.clock, most=3)
        self.tenants = Cache(self.records, Tenant, self.clock, absent=True, most=3)
        self.registrar = Registrar(LocalStore(folder / "keys.json").records, PEPPERS, self.clock, "cli:test")

    async def version(self, id: str, *, fresh: bool = False) -> int | None:
        record = await self.cache.get(id, fresh=fresh)
        return None if record is None else record.version

    async def change(self, id: str) -> None:
        record = await self.registrar.update(id, labels={"n": str(self.clock.time)})
        self.clock.advance(0.001)
        assert record.version > 1


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.records.gate.set()
    await bench.cache.close()
    await bench.tenants.close()


async def test_a_record_is_used_for_a_while_without_asking(bench: Bench) -> None:
    record, _ = await bench.registrar.create("n")
    for _ in range(5):
        assert await bench.version(record.id) == 1
    bench.clock.advance(FRESH_SECONDS - 1)
    assert await bench.version(record.id) == 1
    assert len(bench.records.asked) == 1
    bench.clock.advance(2)
    assert await bench.version(record.id) == 1
    assert len(bench.records.asked) == 2


async def test_while_nothing_is_heard_a_record_is_used_for_a_second(bench: Bench) -> None:
    record, _ = await bench.registrar.create("n")
    assert await bench.version(record.id) == 1
    bench.records.subscribed = False
    bench.clock.advance(DEAF_SECONDS / 2)
    assert await bench.version(record.id) == 1
    await bench.change(record.id)
    assert await bench.version(record.id) == 1
    bench.clock.advance(DEAF_SECONDS)
    assert await bench.version(record.id) == 2


@pytest.mark.parametrize("told", ["key", "all"])
async def test_a_change_during_a_load_does_not_leave_the_old_record(bench: Bench, told: str) -> None:
    record, _ = await bench.registrar.create("n")
    await bench.records.shut()
    early = asyncio.ensure_future(bench.version(record.id))
    await turns()
    await bench.change(record.id)
    bench.cache.changed(f"key:{record.id}" if told == "key" else None)
    late = asyncio.ensure_future(bench.version(record.id))
    await turns()
    bench.records.gate.set()
    assert await early == 1, "it was asked for before the change"
    assert await late == 2, "who asks after the change does not share the load from before it"
    assert await bench.version(record.id) == 2


@pytest.mark.parametrize("told", ["key", "all"])
async def test_the_load_from_before_a_change_fills_nothing(bench: Bench, told: str) -> None:
    record, _ = await bench.registrar.create("n")
    await bench.records.shut()
    early = asyncio.ensure_future(bench.version(record.id))
    await turns()
    await bench.change(record.id)
    bench.cache.changed(f"key:{record.id}" if told == "key" else None)
    bench.records.gate.set()
    assert await early == 1
    assert await bench.version(record.id) == 2


async def test_an_answer_that_comes_late_does_not_replace_a_newer_one(bench: Bench) -> None:
    record, _ = await bench.registrar.create("n")
    await bench.records.refresh()
    bench.records.gate = slow = asyncio.Event()
    early = asyncio.ensure_future(bench.version(record.id))
    await turns()
    await bench.change(record.id)
    bench.cache.changed(None)
    bench.records.gate = asyncio.Event()
    bench.records.gate.set()
    assert await bench.version(record.id) == 2
    slow.set()
    assert await early == 1
    bench.records.asked.clear()
    assert await bench.version(record.id) == 2
    assert not bench.records.asked


async def test_changes_of_other_kinds_and_ids_are_none_of_ours(bench: Bench) -> None:
    record, _ = await bench.registrar.create("n")
    await bench.version(record.id)
    for name in (f"tenant:{record.id}", f"admin:{record.id}", "key:other", "nonsense", ""):
        bench.cache.changed(name)
    await bench.version(record.id)
    assert len(bench.records.asked) == 1


async def test_loads_at_the_same_time_are_one(bench: Bench) -> None:
    record, _ = await bench.registrar.create("n")
    await bench.records.shut()
    loads = [asyncio.ensure_future(bench.version(record.id)) for _ in range(50)]
    await turns()
    loads += [asyncio.ensure_future(bench.version(record.id)) for _ in range(50)]
    await turns()
    bench.records.gate.set()
    assert await asyncio.gather(*loads) == [1] * 100
    assert len(bench.records.asked) == 1


async def test_a_fresh_look_never_shares_a_load_from_before_it(bench: Bench) -> None:
    record, _ = await bench.registrar.create("n")
    await bench.records.shut()
    early = asyncio.ensure_future(bench.version(record.id))
    await turns()
    await bench.change(record.id)  # and nobody heard of it
    fresh = []
    for _ in range(5):
        fresh += [asyncio.ensure_future(bench.version(record.id, fresh=True)) for _ in range(10)]
        await turns()
    bench.records.gate.set()
    assert await early == 1
    assert await asyncio.gather(*fresh) == [2] * 50
    assert await bench.version(record.id) == 2
    assert len(bench.records.asked) == 2, "all fresh looks shared the next one"


async def test_a_caller_that_leaves_does_not_take_the_load_with_it(bench: Bench) -> None:
    record, _ = await bench.registrar.create("n")
    await bench.records.shut()
    leaving, staying = (asyncio.ensure_future(bench.version(record.id)) for _ in range(2))
    await turns()
    leaving.cancel()
    await turns()
    bench.records.gate.set()
    assert await staying == 1 and leaving.cancelled()
    assert len(bench.records.asked) == 1


async def test_a_store_that_goes_down_fails_all_who_wait_and_nobody_after(bench: Bench) -> None:
    record, _ = await bench.registrar.create("n")
    await bench.records.shut()
    waiting = [asyncio.ensure_future(bench.version(record.id)) for _ in range(3)]
    await turns()
    bench.records.down = True
    bench.records.gate.set()
    assert [type(error) for error in await asyncio.gather(*waiting, return_exceptions=True)] == [StoreDown] * 3
    bench.records.down = False
    assert await bench.version(record.id) == 1


async def test_a_record_is_used_for_long_while_the_store_is_down(bench: Bench) -> None:
    record, _ = await bench.registrar.create("n")
    await bench.version(record.id)
    bench.records.down = True
    bench.clock.advance(STALE_SECONDS - 1)
    for fresh in (False, True):
        assert await bench.version(record.id, fresh=fresh) == 1
    bench.clock.advance(2)
    with pytest.raises(StoreDown):
        await bench.version(record.id)


async def test_after_a_flush_records_are_loaded_anew_but_not_lost(bench: Bench) -> None:
    record, _ = await bench.registrar.create("n")
    await bench.version(record.id)
    await bench.change(record.id)
    bench.cache.changed(None)
    bench.records.down = True
    assert await bench.version(record.id) == 1
    bench.records.down = False
    assert await bench.version(record.id) == 2


async def test_what_was_not_used_for_the_longest_time_is_dropped(bench: Bench) -> None:
    ids = [(await bench.registrar.create("n"))[0].id for _ in range(4)]
    for id in (*ids[:3], ids[0], ids[3]):
        await bench.version(id)
    assert len(bench.cache) == 3
    bench.records.asked.clear()
    for id in (ids[0], ids[2], ids[3]):
        await bench.version(id)
    assert not bench.records.asked
    await bench.version(ids[1])
    assert bench.records.asked == [f"key:{ids[1]}"] and len(bench.cache) == 3


async def test_that_there_is_no_record_is_remembered_where_it_is_to_be(bench: Bench) -> None:
    for _ in range(2):
        assert await bench.cache.get("nobody") is None
        assert await bench.tenants.get("nobody") is None
    assert bench.records.asked.count("key:nobody") == 2 and bench.records.asked.count("tenant:nobody") == 1
    bench.records.down = True
    bench.tenants.changed(None)
    assert await bench.tenants.get("nobody") is None
    with pytest.raises(StoreDown):
        await bench.cache.get("nobody")


async def test_close_ends_what_is_under_way(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    await bench.records.shut()
    waiting = asyncio.ensure_future(bench.version("any"))
    await turns()
    await bench.cache.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting
