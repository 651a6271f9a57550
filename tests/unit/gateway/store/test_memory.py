"""The state file of a gateway that runs alone."""

from __future__ import annotations

import asyncio
import multiprocessing
import stat
from pathlib import Path

import pytest
from harness.clock import FixedClock

from gateway.core.types import Ask, Dimension, KeyRecord, Secret
from gateway.store import KeyConflict, StoreDown, memory, open_store
from gateway.store.memory import MemoryStore
from gateway.store.redis import RedisStore


def record(key_id: str = "k", version: int = 1) -> KeyRecord:
    return KeyRecord(id=key_id, name="n", created=1.0, version=version, secrets=(Secret(digest="00"),))


def ask(version: int = 1, **rates: int) -> Ask:
    dimensions = tuple(Dimension(name, "rate", name, limit, 60.0) for name, limit in rates.items())
    return Ask("c", "k", version, dimensions)


async def test_keys_survive_the_process(tmp_path: Path) -> None:
    await MemoryStore(tmp_path / "state" / "keys.json").put_key(record())
    assert await MemoryStore(tmp_path / "state" / "keys.json").key("k") == record()


async def test_the_file_is_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    await MemoryStore(path).put_key(record())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_what_another_process_writes_holds_for_the_next_call(tmp_path: Path) -> None:
    serving, command = MemoryStore(tmp_path / "keys.json"), MemoryStore(tmp_path / "keys.json")
    await command.put_key(record())
    assert not (await serving.admit(ask())).stale
    await command.put_key(record(version=2))
    assert (await serving.admit(ask())).stale
    assert not (await serving.admit(ask(version=2))).stale


@pytest.mark.parametrize("text", ["", "{", "[]", '{"keys": {"k": 3}}', "\0"])
async def test_a_spoilt_file_is_a_store_that_is_down(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(text)
    store = MemoryStore(path)
    for attempt in (store.ping, store.keys, lambda: store.key("k"), lambda: store.admit(ask())):
        with pytest.raises(StoreDown, match=r"keys\.json"):
            await attempt()
    with pytest.raises(StoreDown):
        await store.put_key(record())
    assert path.read_text() == text, "what could not be read is not overwritten"


async def test_a_file_that_is_removed_means_no_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    store = MemoryStore(path)
    await store.put_key(record())
    path.unlink()
    assert await store.key("k") is None


def _put(path: str, number: int) -> None:
    store = MemoryStore(Path(path))
    for step in range(5):
        asyncio.run(store.put_key(record(f"{number}-{step}")))


async def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_put, args=(str(path), number)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(await MemoryStore(path).keys()) == 20


async def test_a_conflict_leaves_the_file_alone(tmp_path: Path) -> None:
    store = MemoryStore(tmp_path / "keys.json")
    await store.put_key(record())
    before = (tmp_path / "keys.json").read_bytes()
    with pytest.raises(KeyConflict):
        await store.put_key(record())
    assert (tmp_path / "keys.json").read_bytes() == before


async def test_old_counters_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MAX_BUCKETS", 10)
    clock = FixedClock()
    store = MemoryStore(tmp_path / "keys.json", clock.now)
    for number in range(100):
        store.charge(ask(**{f"rate{number}": 60}))
        clock.advance(1.0)
    assert len(store._tats) <= 11
    assert (store.charge(ask(rate99=60))).standings[0].remaining == 59


def test_the_settings_choose_the_store(tmp_path: Path) -> None:
    assert isinstance(open_store(None, tmp_path / "keys.json"), MemoryStore)
    assert isinstance(open_store("redis://localhost:6379/0", tmp_path / "keys.json"), RedisStore)
