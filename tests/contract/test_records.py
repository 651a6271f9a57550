"""Records of keys, tenants and admin keys: written in turn, logged with the change or not at all, told to others."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from harness.redis_server import RedisServer, redis_server
from redis import Redis

from gateway.core.types import AdminKey, Allowance, Audit, Budget, KeyRecord, Limit, Secret, Tenant
from gateway.store import Conflict, Store, StoreDown
from gateway.store.memory import MemoryStore
from gateway.store.redis import RedisStore

KINDS = (KeyRecord, Tenant, AdminKey)
LIMIT = Limit(
    rpm=3,
    itpm=7,
    concurrency=4,
    budget=Budget(week=Allowance(tokens=2_000_000, cost_micros=50_000_000)),
    outage={"rpm": "share", "budget": "open"},
)


class Places:
    """Opens stores that share their records, as processes of one fleet do."""

    def __init__(self, make: Callable[[], Store], stack: AsyncExitStack) -> None:
        self._make, self._stack = make, stack

    async def store(self) -> Store:
        store = self._make()
        await store.open()
        self._stack.push_async_callback(store.close)
        return store


@pytest.fixture(params=["memory", "redis"])
async def places(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Places]:
    async with AsyncExitStack() as stack:
        if request.param == "memory":
            yield Places(lambda: MemoryStore(tmp_path / "keys.json"), stack)
        else:
            url = request.getfixturevalue("redis").url
            yield Places(lambda: RedisStore(url, timeout=2.0), stack)


def unique() -> str:
    return uuid.uuid4().hex[:12]


def record(kind: type[Any], id: str, version: int = 1, **fields: Any) -> Any:
    """A record of a kind, as small as it may be."""
    if kind is not Tenant:
        fields = {"name": "n", "secrets": (Secret(digest="00"),), **fields}
    return kind(id=id, version=version, **{"created": time.time(), **fields})


def entry(subject: str, **fields: Any) -> Audit:
    return Audit(time=time.time(), actor="cli:tester", action="key.update", subject=subject, **fields)


async def soon(condition: Callable[[], object], what: str, seconds: float = 1.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.01)


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
)


@pytest.mark.parametrize("full", FULL, ids=lambda full: type(full).__name__)
async def test_a_record_comes_back_as_it_was_put(places: Places, full: Any) -> None:
    kind = type(full)
    one, other = await places.store(), await places.store()
    stored = kind(**{name: getattr(full, name) for name in kind.__struct_fields__} | {"id": unique()})
    await one.put(stored)
    for store in (one, other):
        assert await store.get(kind, stored.id) == stored
        assert stored in await store.all(kind)


@pytest.mark.parametrize("kind", KINDS)
async def test_what_is_not_there_is_none(places: Places, kind: type[Any]) -> None:
    store = await places.store()
    assert await store.get(kind, unique()) is None


async def test_kinds_do_not_share_their_ids(places: Places) -> None:
    store, id = await places.store(), unique()
    for kind in KINDS:
        assert await store.get(kind, id) is None
        await store.put(record(kind, id))
    for kind in KINDS:
        found = await store.get(kind, id)
        assert isinstance(found, kind)
        assert [type(each) for each in await store.all(kind) if each.id == id] == [kind]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("version", [0, 2, 7])
async def test_a_new_record_begins_with_version_one(places: Places, kind: type[Any], version: int) -> None:
    store, id = await places.store(), unique()
    with pytest.raises(Conflict):
        await store.put(record(kind, id, version))
    assert await store.get(kind, id) is None


@pytest.mark.parametrize("kind", KINDS)
async def test_a_change_must_be_one_version_above(places: Places, kind: type[Any]) -> None:
    one, other, id = await places.store(), await places.store(), unique()
    await one.put(record(kind, id))
    for version in (0, 1, 3):
        with pytest.raises(Conflict):
            await other.put(record(kind, id, version))
    second = record(kind, id, 2)
    await other.put(second)
    assert await one.get(kind, id) == second


async def test_of_many_changes_at_once_one_is_taken(places: Places) -> None:
    one, other, id = await places.store(), await places.store(), unique()
    await one.put(record(KeyRecord, id))
    changes = [record(KeyRecord, id, 2, name=f"{n}") for n in range(20)]
    audits = [entry(f"key:{id}", after={"name": f"{n}"}) for n in range(20)]
    results = await asyncio.gather(
        *((one, other)[n % 2].put(changes[n], audits[n]) for n in range(20)), return_exceptions=True
    )
    assert [type(result) for result in results if result is not None] == [Conflict] * 19
    taken = changes[results.index(None)]
    assert await one.get(KeyRecord, id) == taken
    logged = [found for found in await other.audit(1000) if found.subject == f"key:{id}"]
    assert [found.after for found in logged] == [{"name": taken.name}]


async def test_records_are_listed_oldest_first(places: Places) -> None:
    store, stem = await places.store(), unique()
    created = {f"{stem}{n:03}": 1000.0 + (n * 7) % 10 for n in range(10)}
    for id, at in created.items():
        await store.put(record(KeyRecord, id, created=at))
    listed = [each.id for each in await store.all(KeyRecord) if each.id in created]
    assert listed == sorted(created, key=created.__getitem__)


async def test_the_newest_entries_of_the_log_come_first(places: Places) -> None:
    store, id = await places.store(), unique()
    written = []
    for version in range(1, 8):
        written.append(entry(f"key:{id}", before={"version": version - 1}, after={"version": version, "é": [None]}))
        await store.put(record(KeyRecord, id, version), written[-1])
    assert await store.audit(3) == written[:-4:-1]
    assert [found for found in await store.audit() if found.subject == f"key:{id}"] == written[::-1]


async def test_a_change_without_an_entry_logs_nothing(places: Places) -> None:
    store, id = await places.store(), unique()
    before = await store.audit(1)
    await store.put(record(KeyRecord, id))
    assert await store.audit(1) == before


@pytest.mark.parametrize("kind", KINDS)
async def test_a_change_that_is_not_taken_is_not_logged(places: Places, kind: type[Any]) -> None:
    store, id = await places.store(), unique()
    for version in (2, 0):
        with pytest.raises(Conflict):
            await store.put(record(kind, id, version), entry(f"any:{id}"))
    assert not [found for found in await store.audit(1000) if found.subject == f"any:{id}"]


async def test_a_file_that_cannot_be_written_logs_nothing(tmp_path: Path) -> None:
    store = MemoryStore(tmp_path / "keys.json")
    await store.put(record(KeyRecord, "a"), entry("key:a"))
    (tmp_path / "keys.json.new").mkdir()  # where the new file would be prepared
    with pytest.raises(StoreDown):
        await store.put(record(KeyRecord, "b"), entry("key:b"))
    (tmp_path / "keys.json.new").rmdir()
    assert [found.subject for found in await store.audit()] == ["key:a"]
    assert await store.get(KeyRecord, "b") is None
    await store.put(record(KeyRecord, "b"), entry("key:b"))


async def test_half_an_entry_at_the_end_of_the_log_is_no_outage(tmp_path: Path) -> None:
    """What a crash leaves while an entry is being written."""
    store = MemoryStore(tmp_path / "keys.json")
    await store.put(record(KeyRecord, "a"), entry("key:a"))
    (log,) = tmp_path.glob("*audit*")
    log.write_bytes(log.read_bytes() + b'{"time":1,"act')
    assert [found.subject for found in await store.audit()] == ["key:a"]
    await store.put(record(KeyRecord, "b"), entry("key:b"))
    assert [found.subject for found in await store.audit()] == ["key:b", "key:a"]


@pytest.mark.parametrize("kind", [KeyRecord, Tenant])
async def test_a_change_by_another_is_heard_of_within_a_second(places: Places, kind: type[Any]) -> None:
    one, other, id = await places.store(), await places.store(), unique()
    heard: list[str | None] = []
    other.watch(heard.append)
    await soon(lambda: other.hears, "the store hears", 3)
    await asyncio.sleep(0.05)
    name = "key" if kind is KeyRecord else "tenant"
    for version in (1, 2):
        heard.clear()
        await one.put(record(kind, id, version))
        await soon(lambda: f"{name}:{id}" in heard or None in heard, "the change is heard of")


async def test_a_change_of_ones_own_is_heard_of_too(places: Places) -> None:
    store, id = await places.store(), unique()
    heard: list[str | None] = []
    store.watch(heard.append)
    await soon(lambda: store.hears, "the store hears", 3)
    heard.clear()
    await store.put(record(KeyRecord, id))
    await soon(lambda: f"key:{id}" in heard or None in heard, "the change is heard of")


async def test_after_a_reconnect_anything_may_have_changed(redis: RedisServer) -> None:
    """What happened while nobody listened is told as None, and the store says when it is deaf."""
    heard: list[str | None] = []
    with Redis.from_url(redis.url) as client:
        store = RedisStore(redis.url, timeout=2.0)
        store.watch(heard.append)
        await store.open()
        try:
            await soon(lambda: store.hears and None in heard, "the subscription", 3)
            heard.clear()
            client.client_kill_filter(_type="pubsub")
            await soon(lambda: not store.hears, "the store knows that it is deaf")
            await soon(lambda: store.hears and heard == [None], "the subscription again", 3)
            id = unique()
            await store.put(record(KeyRecord, id))
            await soon(lambda: f"key:{id}" in heard, "the change is heard of")
        finally:
            await store.close()


async def test_a_store_whose_redis_is_gone_does_not_hear() -> None:
    with redis_server() as own:
        store = RedisStore(own.url, timeout=0.25)
        assert not store.hears
        await store.open()
        try:
            await soon(lambda: store.hears, "the store hears", 3)
            own.stop()
            await soon(lambda: not store.hears, "the store knows that it is deaf", 4)
            heard: list[str | None] = []
            store.watch(heard.append)
            own.restart()
            await soon(lambda: store.hears and None in heard, "the store hears again", 4)
        finally:
            await store.close()


async def test_a_lost_memory_is_an_outage_and_not_an_unknown_key() -> None:
    """A Redis that was flushed has no records; whoever has seen some must not take their absence for an answer."""
    with redis_server() as own, Redis.from_url(own.url) as client:
        store = RedisStore(own.url, timeout=2.0)
        await store.open()
        try:
            assert await store.get(KeyRecord, "never") is None
            await store.put(record(KeyRecord, "a"))
            assert await store.get(KeyRecord, "a") is not None
            assert await store.get(KeyRecord, "never") is None
            client.flushall()
            for look in (store.get(KeyRecord, "a"), store.get(KeyRecord, "b"), store.all(KeyRecord)):
                with pytest.raises(StoreDown):
                    await look
            await store.put(record(KeyRecord, "b"))
            assert await store.get(KeyRecord, "a") is None
        finally:
            await store.close()
