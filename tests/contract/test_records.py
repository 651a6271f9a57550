"""Records of keys, tenants and admin keys: written in turn, and logged with the change or not at all."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from contract.written import KINDS, Places, entry, record, unique

from gateway.core.types import AdminKey, Allowance, Budget, Entry, KeyRecord, Limit, Secret, TargetOrder, Tenant
from gateway.store import Conflict

LIMIT = Limit(
    rpm=3,
    itpm=7,
    concurrency=4,
    budget=Budget(week=Allowance(tokens=2_000_000, cost_micros=50_000_000)),
    outage={"rpm": "share", "budget": "open"},
)


FULL = (
    KeyRecord(
        id="",
        name="Zoë's \u2028 key",
        secrets=(Secret(digest="ab", pepper=2, not_after=17.25), Secret(digest="cd")),
        created=1_800_000_000.5,
        tenant="team/a:b",
        models=("a*", "b"),
        endpoints=("chat/*",),
        limit=LIMIT,
        model_limits={"llama:8b": Limit(tpm=5)},
        priority="high",
        labels={"cost-centre": "42"},
        sources=("10.0.0.0/8", "::1/128"),
        expires=1e12,
        revoked=12.5,
    ),
    Tenant(id="", created=1.5, limit=LIMIT, labels={"a": "b"}),
    AdminKey(id="", name="root", secrets=(Secret(digest="ef"),), created=2.5, once=True, expires=9e9, revoked=3.0),
    TargetOrder(id="", created=3.5, state="ejected", until=1e12, reason="disk — full"),
)


@pytest.mark.parametrize("full", FULL, ids=lambda full: type(full).__name__)
async def test_a_record_comes_back_as_it_was_put(places: Places, full: Any) -> None:
    kind = type(full)
    one, other = await places.store(), await places.store()
    stored = kind(**{name: getattr(full, name) for name in kind.__struct_fields__} | {"id": unique()})
    await one.records.put(stored)
    for store in (one, other):
        assert await store.records.get(kind, stored.id) == stored
        assert stored in await store.records.all(kind)


@pytest.mark.parametrize("kind", KINDS)
async def test_what_is_not_there_is_none(places: Places, kind: type[Any]) -> None:
    store = await places.store()
    assert await store.records.get(kind, unique()) is None


async def test_kinds_do_not_share_their_ids(places: Places) -> None:
    store, id = await places.store(), unique()
    kind: Any
    for kind in KINDS:
        assert await store.records.get(kind, id) is None
        await store.records.put(record(kind, id))
    for kind in KINDS:
        found = await store.records.get(kind, id)
        assert isinstance(found, kind)
        assert [type(each) for each in await store.records.all(kind) if each.id == id] == [kind]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("version", [0, 2, 7])
async def test_a_new_record_begins_with_version_one(places: Places, kind: type[Any], version: int) -> None:
    store, id = await places.store(), unique()
    with pytest.raises(Conflict):
        await store.records.put(record(kind, id, version))
    assert await store.records.get(kind, id) is None


@pytest.mark.parametrize("kind", KINDS)
async def test_a_change_must_be_one_version_above(places: Places, kind: type[Any]) -> None:
    one, other, id = await places.store(), await places.store(), unique()
    await one.records.put(record(kind, id))
    for version in (0, 1, 3):
        with pytest.raises(Conflict):
            await other.records.put(record(kind, id, version))
    second = record(kind, id, 2)
    await other.records.put(second)
    assert await one.records.get(kind, id) == second


async def test_orders_about_targets_and_what_targets_were_used_for_do_not_meet(places: Places) -> None:
    """In Redis both are by target, and the ledger was there first."""
    store, id = await places.store(), unique()
    call = Entry(call_id=unique(), time=time.time(), key_id="k", tenant="t", route="r", target=id, input=3, output=4)
    for version in (1, 2):
        await store.ledger.append(unique(), [call])
        await store.records.put(record(TargetOrder, id, version))
    assert (await store.ledger.by_target())[id] == (6, 8)
    assert [order.version for order in await store.records.all(TargetOrder) if order.id == id] == [2]


async def test_of_many_changes_at_once_one_is_taken(places: Places) -> None:
    one, other, id = await places.store(), await places.store(), unique()
    await one.records.put(record(KeyRecord, id))
    changes = [record(KeyRecord, id, 2, name=f"{n}") for n in range(20)]
    audits = [entry(f"key:{id}", after={"name": f"{n}"}) for n in range(20)]
    results = await asyncio.gather(
        *((one, other)[n % 2].records.put(changes[n], audits[n]) for n in range(20)), return_exceptions=True
    )
    assert [type(result) for result in results if result is not None] == [Conflict] * 19
    taken = changes[results.index(None)]
    assert await one.records.get(KeyRecord, id) == taken
    logged = [found for found in await other.records.audit(1000) if found.subject == f"key:{id}"]
    assert [found.after for found in logged] == [{"name": taken.name}]


async def test_records_are_listed_oldest_first(places: Places) -> None:
    store, stem = await places.store(), unique()
    created = {f"{stem}{n:03}": 1000.0 + (n * 7) % 10 for n in range(10)}
    for id, at in created.items():
        await store.records.put(record(KeyRecord, id, created=at))
    listed = [each.id for each in await store.records.all(KeyRecord) if each.id in created]
    assert listed == sorted(created, key=created.__getitem__)


async def test_the_newest_entries_of_the_log_come_first(places: Places) -> None:
    store, id = await places.store(), unique()
    written = []
    for version in range(1, 8):
        written.append(entry(f"key:{id}", before={"version": version - 1}, after={"version": version, "é": [None]}))
        await store.records.put(record(KeyRecord, id, version), written[-1])
    assert await store.records.audit(3) == written[:-4:-1]
    assert [found for found in await store.records.audit() if found.subject == f"key:{id}"] == written[::-1]


async def test_a_change_without_an_entry_logs_nothing(places: Places) -> None:
    store, id = await places.store(), unique()
    before = await store.records.audit(1)
    await store.records.put(record(KeyRecord, id))
    assert await store.records.audit(1) == before


@pytest.mark.parametrize("kind", KINDS)
async def test_a_change_that_is_not_taken_is_not_logged(places: Places, kind: type[Any]) -> None:
    store, id = await places.store(), unique()
    for version in (2, 0):
        with pytest.raises(Conflict):
            await store.records.put(record(kind, id, version), entry(f"any:{id}"))
    assert not [found for found in await store.records.audit(1000) if found.subject == f"any:{id}"]
