"""Bad luck with the state file: each has a sentence with the file's name and what to do, and nothing is half done."""

from __future__ import annotations

import asyncio
import os
import resource
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from contract.wanted import Wanted, asking

from gateway.core.types import Audit, Entry, KeyRecord, Secret
from gateway.store import StoreDown
from gateway.store.local import LocalStore, prepare
from gateway.store.local.database import Connection, Database
from gateway.store.local.schema import APPLICATION, VERSION


def record(id: str = "k", name: str = "n") -> KeyRecord:
    return KeyRecord(id=id, name=name, created=1.0, secrets=(Secret(digest="00"),))


def calls(number: int) -> list[Entry]:
    return [
        Entry(call_id=f"c-{i}" * 20, time=1e9, key_id="k", tenant="t", route="r", target="a") for i in range(number)
    ]


ASK = asking("c", (("key:k", 1),), Wanted("rpm", "rate", "rate:key:k:rpm", 60, 60.0))


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[LocalStore]:
    store = LocalStore(tmp_path / "keys.db")
    await store.open()
    yield store
    await store.close()


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def nobody() -> Iterator[None]:
    """As somebody whom permissions hold for; the superuser may do anything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


async def refused(state: Path, sentence: str, *, untouched: bool = True) -> None:
    """Every use of the file is refused with this sentence, and what is there stays as it was."""
    before = state.read_bytes() if untouched else b""
    store = LocalStore(state)
    for attempt in (
        store.open,
        lambda: store.records.put(record()),
        lambda: store.ledger.append("b", calls(1)),
        store.records.audit,
    ):
        with pytest.raises(StoreDown, match=rf"keys\.db.*{sentence}"):
            await attempt()
    with pytest.raises(StoreDown, match=sentence):
        prepare(state)
    await store.close()
    if untouched:
        assert state.read_bytes() == before


@pytest.mark.parametrize("text", [b"{}", b"{nonsense" * 20, b"\0" * 200, b"SQLite format 3\0" + b"x" * 600])
async def test_a_file_that_is_no_database(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "keys.db").write_bytes(text)
    await refused(tmp_path / "keys.db", r"is no SQLite database .* name another state file")


@pytest.mark.parametrize("pragma", ["application_id = 7", "user_version = 7"])
async def test_another_programs_database(tmp_path: Path, pragma: str) -> None:
    with closing(sqlite3.connect(tmp_path / "keys.db")) as connection:
        connection.execute(f"PRAGMA {pragma}")
        connection.execute("CREATE TABLE theirs (a)")
        connection.commit()
    await refused(tmp_path / "keys.db", "is another program's database: name another state file")
    assert not (tmp_path / "keys.db-wal").exists()


async def test_tables_of_a_newer_version(tmp_path: Path) -> None:
    prepare(tmp_path / "keys.db")
    with closing(sqlite3.connect(tmp_path / "keys.db")) as connection:
        connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    await refused(tmp_path / "keys.db", rf"newer version .* version {VERSION + 1}, this one knows {VERSION}\): upgrade")


async def test_tables_of_an_older_version_become_todays(tmp_path: Path) -> None:
    entry = Entry(call_id="a", time=1.0, key_id="k", tenant="t", route="r", user="ann")
    prepare(tmp_path / "keys.db")
    with closing(sqlite3.connect(tmp_path / "keys.db")) as connection:
        older = ", ".join(name for name in Entry.__struct_fields__ if name != "user")
        connection.execute("ALTER TABLE calls DROP COLUMN user")
        values = "'old', 1, 'k', 't', 'r', '', '', 'answered', 0, 0, 0, 0, ''"
        connection.execute(f"INSERT INTO calls ({older}) VALUES ({values})")
        connection.execute("PRAGMA user_version = 1")
        connection.commit()
    for name in ("first", "second"):
        store = LocalStore(tmp_path / "keys.json")
        await store.open()
        await store.ledger.append(name, [entry])
        await store.close()
    with closing(sqlite3.connect(tmp_path / "keys.db")) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (VERSION,)
        found = connection.execute("SELECT call_id, user FROM calls").fetchall()
        assert found == [("old", ""), ("a", "ann"), ("a", "ann")]


def test_the_file_says_whose_it_is_and_of_which_version(tmp_path: Path) -> None:
    assert prepare(tmp_path / "state" / "keys.json") == tmp_path / "state" / "keys.db"
    with closing(sqlite3.connect(tmp_path / "state" / "keys.db")) as connection:
        found = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
        assert found == [APPLICATION, VERSION]
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


async def test_a_commit_waits_for_the_disk(store: LocalStore) -> None:
    found = await store._database.write(lambda connection: connection.execute("PRAGMA synchronous").fetchone())
    assert found == (2,), "FULL"


async def test_a_damaged_file(tmp_path: Path, store: LocalStore) -> None:
    for number in range(50):
        await store.records.put(
            record(f"k{number}", "n" * 100), Audit(time=1.0, actor="a", action="b", subject="c" * 500)
        )
    await store.close()
    content = bytearray((tmp_path / "keys.db").read_bytes())
    content[4096:] = os.urandom(len(content) - 4096)
    (tmp_path / "keys.db").write_bytes(content)
    await refused(tmp_path / "keys.db", r"is damaged .* put a copy back", untouched=False)


async def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("a file where the folder should be")
    store = LocalStore(tmp_path / "folder" / "keys.db")
    with pytest.raises(StoreDown, match=r"folder/keys\.db"):
        await store.records.put(record())
    (tmp_path / "folder").unlink()
    await store.records.put(record())
    await store.close()


async def test_a_file_that_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "keys.db").mkdir()
    await refused(tmp_path / "keys.db", "cannot be opened", untouched=False)


async def test_a_folder_that_may_only_be_read() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, state = Path(name), Path(name) / "keys.db"
        folder.chmod(0o555)
        store = LocalStore(state)
        with nobody():
            assert await store.records.all(KeyRecord) == []
            for attempt in (lambda: store.records.put(record()), lambda: store.ledger.append("b", calls(1))):
                with pytest.raises(StoreDown, match=r"keys\.db cannot be used: .*Permission denied"):
                    await attempt()
        folder.chmod(0o755)
        prepare(state)
        folder.chmod(0o555)
        for file in folder.iterdir():
            file.chmod(0o444)
        with nobody():
            await refused(state, "Permission denied|cannot be (written|opened)")
        folder.chmod(0o755)


async def test_a_full_disk_takes_a_batch_whole_or_not_at_all(store: LocalStore) -> None:
    await store.ledger.append("b-1", calls(1))

    def bound(connection: Connection) -> None:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages + 2}")

    def unbound(connection: Connection) -> None:
        connection.execute("PRAGMA max_page_count = 1000000")

    await store._database.write(bound)
    for _ in range(2):
        with pytest.raises(StoreDown, match=r"no room on the disk for .*keys\.db"):
            await store.ledger.append("b-2", calls(500))
    with pytest.raises(StoreDown, match="no room on the disk"):
        await store.records.put(record(name="n" * 100_000), Audit(time=1.0, actor="a", action="b", subject="c"))
    assert await store.records.audit() == [] == await store.records.all(KeyRecord)
    assert (await store.ledger.sums("", "~"))[0].calls == 1
    await store._database.write(unbound)
    for _ in range(2):
        await store.ledger.append("b-2", calls(500))
    assert (await store.ledger.sums("", "~"))[0].calls == 501 and await store.ledger.by_target() == {"a": (0, 0)}


async def test_a_disk_that_ends_in_the_middle_of_a_write(tmp_path: Path, store: LocalStore) -> None:
    await store.ledger.append("b-1", calls(1))
    size = (tmp_path / "keys.db-wal").stat().st_size
    with disk_of(size + 10_000), pytest.raises(StoreDown, match=r"keys\.db"):
        await store.ledger.append("b-2", calls(500))
    await store.ledger.append("b-2", calls(500))
    assert (await store.ledger.sums("", "~"))[0].calls == 501


async def test_a_file_that_another_keeps_to_itself(
    tmp_path: Path, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writing waits and then is an outage; reading does not even wait."""
    await store.records.put(record())
    monkeypatch.setattr("gateway.store.local.database.BUSY_SECONDS", 0.05)
    other = LocalStore(tmp_path / "keys.db")
    await other.open()
    with closing(sqlite3.connect(tmp_path / "keys.db", isolation_level=None)) as theirs:
        theirs.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreDown, match=r"keys\.db is being written by another process"):
            await other.ledger.append("b", calls(1))
        waiting = asyncio.create_task(store.records.put(record("l")))
        assert not (await other.limits.admit(ASK)).stale and await other.records.get(KeyRecord, "l") is None
        theirs.execute("ROLLBACK")
    await waiting
    await other.ledger.append("b", calls(1))
    assert await other.records.get(KeyRecord, "l") == record("l")
    await other.close()


async def test_a_write_that_nobody_waits_for_any_more_is_whole(tmp_path: Path) -> None:
    database = Database(tmp_path / "keys.db")
    store = LocalStore(tmp_path / "keys.db")
    await store.records.put(record())
    for number in range(20):
        task = asyncio.create_task(store.ledger.append(f"b-{number}", calls(3)))
        for _ in range(number % 4):
            await asyncio.sleep(0)
        task.cancel()
    await store.close()
    found = await database.read(lambda connection: connection.execute("SELECT count(*) FROM calls").fetchone())
    assert found[0] % 3 == 0 and found[0] == sum(each.calls for each in await store.ledger.sums("", "~"))
    await database.close()
    await store.close()


async def test_a_generation_file_that_cannot_be_written_is_no_failed_change(
    tmp_path: Path, store: LocalStore, caplog: pytest.LogCaptureFixture
) -> None:
    await store.records.put(record())
    assert await store.records.get(KeyRecord, "k") is not None
    (tmp_path / "keys.db.generation").unlink()
    (tmp_path / "keys.db.generation").mkdir()
    await store.records.put(record("l"))
    assert "changes are seen later" in caplog.text
    await store.records.refresh(anyway=True)
    assert await store.records.get(KeyRecord, "l") is not None
