"""The store without Redis: what another process writes, what outlives a process, and files that come and go."""

from __future__ import annotations

import asyncio
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

import pytest
from contract.wanted import Wanted, asking
from harness.clock import FixedClock

from gateway.core.types import AdminKey, Ask, Entry, KeyRecord, Secret, Tenant
from gateway.store import Conflict, StoreDown, open_store
from gateway.store.local import LocalStore
from gateway.store.redis.store import RedisStore

Opened = Callable[..., Awaitable[LocalStore]]


def record(key_id: str = "k", version: int = 1) -> KeyRecord:
    return KeyRecord(id=key_id, name="n", created=1.0, version=version, secrets=(Secret(digest="00"),))


def ask(version: int = 1, tenant: int = 0) -> Ask:
    return asking("c", (("key:k", version), ("tenant:t", tenant)), Wanted("rpm", "rate", "rate:key:k:rpm", 60, 60.0))


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Opened]:
    """Opens the store of a state file, and closes it after the test."""
    async with AsyncExitStack() as stack:

        async def open_one(name: str = "keys.db", **options: object) -> LocalStore:
            store = LocalStore(tmp_path / name, **options)  # type: ignore[arg-type]
            await store.open()
            stack.push_async_callback(store.close)
            return store

        yield open_one


async def test_records_survive_the_process(opened: Opened) -> None:
    first = await opened("state/keys.db")
    tenant, admin = Tenant(id="t", created=1.0), AdminKey(id="a", name="n", secrets=(), created=1.0)
    for each in (record(), tenant, admin):
        await first.records.put(each)
    second = await opened("state/keys.db")
    assert await second.records.get(KeyRecord, "k") == record()
    assert await second.records.get(Tenant, "t") == tenant
    assert await second.records.get(AdminKey, "a") == admin


async def test_all_files_are_for_their_owner_only(tmp_path: Path, opened: Opened) -> None:
    store = await opened(boot="one")
    await store.records.put(record())
    await store.board.report(b"word")
    files = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
    assert files == dict.fromkeys(("keys.db", "keys.db-wal", "keys.db-shm", "keys.db.generation"), 0o600)


async def test_reading_makes_no_file(tmp_path: Path, opened: Opened) -> None:
    store = await opened("absent/keys.db")
    assert await store.records.all(KeyRecord) == await store.records.audit() == await store.ledger.sums("", "~") == []
    assert await store.ledger.by_target() == await store.board.reports() == {}
    await store.ping()
    assert list(tmp_path.iterdir()) == []
    await (await opened("absent/keys.db")).records.put(record())
    assert await store.records.get(KeyRecord, "k") == record()


async def test_what_another_process_writes_holds_for_the_next_call(opened: Opened) -> None:
    serving, command = await opened(), await opened()
    await command.records.put(record())
    assert not (await serving.limits.admit(ask())).stale
    await command.records.put(record(version=2))
    assert (await serving.limits.admit(ask())).stale
    assert not (await serving.limits.admit(ask(version=2))).stale
    await command.records.put(Tenant(id="t", created=1.0))
    assert (await serving.limits.admit(ask(version=2))).stale
    assert not (await serving.limits.admit(ask(version=2, tenant=1))).stale


async def test_changes_in_quick_succession_are_each_seen_by_the_next_call(opened: Opened) -> None:
    """Faster than a file system's clock ticks."""
    serving, command = await opened(), await opened()
    await command.records.put(record())
    for version in range(1, 60):
        assert not (await serving.limits.admit(ask(version))).stale
        await command.records.put(record(version=version + 1))
        assert (await serving.limits.admit(ask(version))).stale


async def test_calls_ask_the_database_only_after_a_change(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    serving, command = await opened(), await opened()
    await command.records.put(record())
    await serving.ping()
    reads = []
    read = serving._database.read

    def counted(work: Callable[..., object]) -> Awaitable[object]:
        reads.append(work)
        return read(work)

    monkeypatch.setattr(serving._database, "read", counted)
    monkeypatch.setattr("gateway.store.local.store.LOOK_SECONDS", 1000.0)
    await command.ledger.append("b", [Entry(call_id="c", time=1e9, key_id="k", tenant="t", route="r")])
    for _ in range(50):
        assert not (await serving.limits.admit(ask())).stale
        assert await serving.records.get(KeyRecord, "k") is not None
    assert not reads
    await command.records.put(record(version=2))
    verdicts = await asyncio.gather(*(serving.limits.admit(ask()) for _ in range(50)))
    assert all(verdict.stale for verdict in verdicts) and len(reads) == 1


async def test_a_change_whose_writer_died_before_it_told_of_it_is_seen(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.store.local.store.LOOK_SECONDS", 0.01)
    serving, command = await opened(), await opened()
    monkeypatch.setattr(command._database, "_announce", lambda generation: None)
    heard: asyncio.Queue[str | None] = asyncio.Queue()
    serving.records.watch(heard.put_nowait)
    await command.records.put(record())
    async with asyncio.timeout(20):
        while (await serving.limits.admit(ask())).stale:
            await heard.get()


async def test_a_call_that_leaves_while_changes_are_read_takes_nothing_from_others(opened: Opened) -> None:
    serving, command = await opened(), await opened()
    await command.records.put(record())
    calls = [asyncio.create_task(serving.limits.admit(ask())) for _ in range(10)]
    await asyncio.sleep(0)
    calls[0].cancel()
    verdicts = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(verdicts[0], asyncio.CancelledError)
    assert [getattr(verdict, "stale", None) for verdict in verdicts[1:]] == [False] * 9


async def test_a_file_that_is_removed_means_no_keys(tmp_path: Path, opened: Opened) -> None:
    store = await opened()
    await store.records.put(record())
    assert await store.records.get(KeyRecord, "k") is not None
    for file in tmp_path.iterdir():
        file.unlink()
    assert await store.records.get(KeyRecord, "k") is None
    await store.records.put(record())
    assert await store.records.get(KeyRecord, "k") == record()
    (tmp_path / "keys.db").unlink()  # and what is beside it stays
    await store.records.refresh(anyway=True)  # as is done once a second
    assert await store.records.get(KeyRecord, "k") is None
    await store.records.put(record("other"))
    assert [found.id for found in await store.records.all(KeyRecord)] == ["other"]


async def test_a_copy_that_is_put_back_is_taken_as_it_is(tmp_path: Path, opened: Opened) -> None:
    store = await opened()
    await store.records.put(record())
    await store.close()
    copy = (tmp_path / "keys.db").read_bytes()
    await store.open()
    heard: list[str | None] = []
    store.records.watch(heard.append)
    await store.records.put(record(version=2))
    assert not (await store.limits.admit(ask(version=2))).stale
    (tmp_path / "copy").write_bytes(copy)
    for ending in ("-wal", "-shm"):
        (tmp_path / f"keys.db{ending}").unlink()
    (tmp_path / "copy").rename(tmp_path / "keys.db")
    await store.records.refresh(anyway=True)  # as is done once a second
    assert not (await store.limits.admit(ask())).stale
    assert heard[-1] is None


WRITER = """
import asyncio, sys
from pathlib import Path
from gateway.core.types import KeyRecord
from gateway.store.local import LocalStore

async def main():
    print(flush=True)
    sys.stdin.readline()
    store = LocalStore(Path(sys.argv[1]))
    await store.open()
    for step in range(5):
        await store.records.put(KeyRecord(id=f"{sys.argv[2]}-{step}", name="n", secrets=(), created=1.0))
    await store.close()

asyncio.run(main())
"""


async def test_processes_that_write_at_once_lose_nothing(tmp_path: Path, opened: Opened) -> None:
    """Even the first ones, of which each finds no file yet."""
    with ExitStack() as stack:
        writers = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", WRITER, str(tmp_path / "keys.db"), str(number)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            )
            for number in range(4)
        ]
        for writer in writers:
            assert writer.stdout is not None and writer.stdout.readline()
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.write(b"\n")
            writer.stdin.flush()
        for writer in writers:
            writer.wait()
    assert [writer.returncode for writer in writers] == [0] * 4
    assert len(await (await opened()).records.all(KeyRecord)) == 20


async def test_a_conflict_changes_nothing(tmp_path: Path, opened: Opened) -> None:
    store = await opened()
    await store.records.put(record())
    before = store._database.stamp()
    with pytest.raises(Conflict):
        await store.records.put(record())
    assert store._database.stamp() == before


async def test_closing_finishes_what_was_begun(opened: Opened) -> None:
    store = await opened()
    writes = [asyncio.create_task(store.records.put(record(f"k{number}"))) for number in range(50)]
    await asyncio.sleep(0)
    await store.close()
    await asyncio.gather(*writes)
    assert len(await (await opened()).records.all(KeyRecord)) == 50


async def test_budgets_go_on_where_the_former_process_ended(opened: Opened) -> None:
    """They are rebuilt from the ledger; rates and slots begin anew, as nobody is there any more."""
    clock = FixedClock()
    budget = Wanted("budget", "budget", "budget:tenant:t:month:tokens", 100, 60.0, "tenant", "tokens", "month")
    first = await opened(now=clock.now)
    await first.ledger.append(
        "batch", [Entry(call_id="c", time=clock.now(), key_id="k", tenant="t", route="r", input=50, output=20)]
    )
    verdict = await (await opened(now=clock.now)).limits.admit(asking("c2", (), budget))
    assert verdict.standings[0].remaining == 29


def test_the_settings_choose_the_store(tmp_path: Path) -> None:
    assert isinstance(open_store(None, tmp_path / "keys.db"), LocalStore)
    for url in ("redis://localhost:6379/0", "redis+sentinel://a,b/master", "redis+cluster://a"):
        assert isinstance(open_store(url, tmp_path / "keys.db"), RedisStore)
    with pytest.raises(ValueError, match="Redis URL"):
        open_store("postgres://localhost", tmp_path / "keys.db")


async def test_a_record_that_cannot_be_read_is_a_store_that_is_down(opened: Opened) -> None:
    store = await opened()
    await store.records.put(record())
    await store._database.write(
        lambda connection: connection.execute("UPDATE records SET body = '{}', changed = changed + 1")
    )
    with pytest.raises(StoreDown, match="record of kind 'key'"):
        await store.records.refresh(anyway=True)
