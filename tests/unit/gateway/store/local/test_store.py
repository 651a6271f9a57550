"""The state file of a gateway that runs alone."""

from __future__ import annotations

import asyncio
import multiprocessing
import stat
from pathlib import Path

import pytest
from harness.clock import FixedClock

from gateway.core.types import AdminKey, Ask, Dimension, Entry, KeyRecord, Secret, Tenant
from gateway.store import Conflict, StoreDown, open_store
from gateway.store.local.store import MemoryStore
from gateway.store.redis.store import RedisStore


def record(key_id: str = "k", version: int = 1) -> KeyRecord:
    return KeyRecord(id=key_id, name="n", created=1.0, version=version, secrets=(Secret(digest="00"),))


def ask(version: int = 1, tenant: int = 0) -> Ask:
    return Ask("c", (("key:k", version), ("tenant:t", tenant)), (Dimension("rpm", "rate", "rate:key:k:rpm", 60, 60.0),))


async def test_records_survive_the_process(tmp_path: Path) -> None:
    first = MemoryStore(tmp_path / "state" / "keys.json")
    tenant, admin = Tenant(id="t", created=1.0), AdminKey(id="a", name="n", secrets=(), created=1.0)
    for each in (record(), tenant, admin):
        await first.put(each)
    second = MemoryStore(tmp_path / "state" / "keys.json")
    assert await second.get(KeyRecord, "k") == record()
    assert await second.get(Tenant, "t") == tenant
    assert await second.get(AdminKey, "a") == admin


async def test_the_file_is_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    await MemoryStore(path).put(record())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_what_another_process_writes_holds_for_the_next_call(tmp_path: Path) -> None:
    serving, command = MemoryStore(tmp_path / "keys.json"), MemoryStore(tmp_path / "keys.json")
    await command.put(record())
    assert not (await serving.admit(ask())).stale
    await command.put(record(version=2))
    assert (await serving.admit(ask())).stale
    assert not (await serving.admit(ask(version=2))).stale
    await command.put(Tenant(id="t", created=1.0))
    assert (await serving.admit(ask(version=2))).stale
    assert not (await serving.admit(ask(version=2, tenant=1))).stale


@pytest.mark.parametrize("text", ["", "{", "[]", '{"keys": {"k": 3}}', "\0"])
async def test_a_spoilt_file_is_a_store_that_is_down(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(text)
    store = MemoryStore(path)
    attempts = (
        store.ping,
        lambda: store.all(KeyRecord),
        lambda: store.get(KeyRecord, "k"),
        lambda: store.get(Tenant, "t"),
        lambda: store.admit(ask()),
        lambda: store.put(record()),
    )
    for attempt in attempts:
        with pytest.raises(StoreDown, match=r"keys\.json"):
            await attempt()
    assert path.read_text() == text, "what could not be read is not overwritten"


async def test_a_file_that_is_removed_means_no_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    store = MemoryStore(path)
    await store.put(record())
    path.unlink()
    assert await store.get(KeyRecord, "k") is None


def _put(path: str, number: int) -> None:
    store = MemoryStore(Path(path))
    for step in range(5):
        asyncio.run(store.put(record(f"{number}-{step}")))


async def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_put, args=(str(path), number)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(await MemoryStore(path).all(KeyRecord)) == 20


async def test_a_conflict_leaves_the_file_alone(tmp_path: Path) -> None:
    store = MemoryStore(tmp_path / "keys.json")
    await store.put(record())
    before = (tmp_path / "keys.json").read_bytes()
    with pytest.raises(Conflict):
        await store.put(record())
    assert (tmp_path / "keys.json").read_bytes() == before


async def test_budgets_go_on_where_the_former_process_ended(tmp_path: Path) -> None:
    """They are rebuilt from the ledger; rates and slots begin anew, as nobody is there any more."""
    clock = FixedClock()
    budget = Dimension("budget", "budget", "budget:tenant:t:month:tokens", 100, 60.0, 1, "tenant", "tokens", "month")
    first = MemoryStore(tmp_path / "keys.json", clock.now)
    entry = Entry(call_id="c", time=clock.now(), key_id="k", tenant="t", route="r", input=50, output=20)
    await first.append("batch", [entry])
    second = MemoryStore(tmp_path / "keys.json", clock.now)
    await second.open()
    try:
        verdict = await second.admit(Ask("c2", (), (budget,)))
    finally:
        await second.close()
    assert verdict.standings[0].remaining == 29


def test_the_settings_choose_the_store(tmp_path: Path) -> None:
    assert isinstance(open_store(None, tmp_path / "keys.json"), MemoryStore)
    for url in ("redis://localhost:6379/0", "redis+sentinel://a,b/master", "redis+cluster://a"):
        assert isinstance(open_store(url, tmp_path / "keys.json"), RedisStore)
    with pytest.raises(ValueError, match="Redis URL"):
        open_store("postgres://localhost", tmp_path / "keys.json")
