"""What an earlier version left in files is read once, whole, and never changed; golden files of its own writing."""

from __future__ import annotations

import json
import logging
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from contract.wanted import Wanted, asking

from gateway.auth.token import parse
from gateway.core.types import AdminKey, Audit, Entry, KeyRecord, Sum, TargetOrder, Tenant
from gateway.store import StoreDown
from gateway.store.local import LocalStore, prepare

GOLDEN = Path(__file__).parents[4] / "golden" / "state"
EXPECTED: dict[str, Any] = json.loads((GOLDEN / "expected.json").read_text())
KINDS = (KeyRecord, Tenant, AdminKey, TargetOrder)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """The state file of an earlier version, with all that is beside it."""
    shutil.copytree(GOLDEN, tmp_path / "state")
    (tmp_path / "state" / "expected.json").unlink()
    return tmp_path / "state" / "keys.json"


def files(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file() and "keys.db" not in file.name}


async def check(state: Path) -> None:
    """The store has all that the earlier version read from its files."""
    store = LocalStore(state)
    await store.open()
    try:
        for kind in KINDS:
            expected = msgspec.convert(EXPECTED["records"][kind.__name__], list[kind])  # type: ignore[valid-type]
            assert await store.records.all(kind) == expected
        assert await store.records.audit(1000) == msgspec.convert(EXPECTED["audit"], list[Audit])
        assert await store.ledger.sums("0000-01-01", "9999-12-31") == msgspec.convert(EXPECTED["sums"], list[Sum])
        assert await store.ledger.by_target() == {name: tuple(tokens) for name, tokens in EXPECTED["by_target"].items()}
    finally:
        await store.close()


@pytest.mark.parametrize("name", ["keys.json", "keys.db"])
async def test_all_is_there_and_the_files_stay(state: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    before = files(state.parent)
    for _ in range(2):
        await check(state.with_name(name))
    assert files(state.parent) == before
    assert state.with_name("keys.db").exists()
    read = [line for line in caplog.messages if "was read" in line]
    assert len(read) == 1 and "3 keys, 1 tenants, 8 audit entries, 60 calls" in read[0]


async def test_a_key_of_the_earlier_version_is_still_good(state: Path) -> None:
    store = LocalStore(state)
    await store.open()
    key_id, _ = parse(EXPECTED["secret"])
    assert (await store.records.get(KeyRecord, key_id)) is not None
    await store.close()


async def test_the_calls_are_rows_in_their_order(state: Path) -> None:
    with closing(sqlite3.connect(prepare(state))) as connection:
        found = connection.execute("SELECT call_id, time, target, outcome FROM calls ORDER BY number").fetchall()
    assert [call for call, *_ in found] == [f"call-{number}" for number in range(60)]
    assert found[5] == ("call-5", 1795348805.0, "", "gone")


async def test_budgets_go_on_where_they_were(state: Path) -> None:
    now = 1795348800.0 + 2 * 86400 + 100
    store = LocalStore(state, lambda: now)
    await store.open()
    spent = sum(each["input"] + each["output"] for each in EXPECTED["sums"])
    budget = Wanted("budget", "budget", "budget:tenant:team-a:month:tokens", 10**6, 60.0, "tenant", "tokens", "month")
    verdict = await store.limits.admit(asking("c", (), budget))
    assert verdict.standings[0].remaining == 10**6 - spent - 1
    await store.close()


async def test_while_the_earlier_gateway_runs_nothing_is_read(state: Path) -> None:
    report = state.with_name("keys.json.report")
    report.write_bytes(f"boot {time.time():.3f}\nword".encode())
    for _ in range(2):
        with pytest.raises(StoreDown, match=r"earlier version still runs on .*keys\.json: stop it"):
            prepare(state)
    report.write_bytes(f"boot {time.time() - 11:.3f}\nword".encode())
    await check(state)


async def test_files_that_were_changed_afterwards_are_not_passed_over(state: Path) -> None:
    """Somebody went back to the earlier version, and revoked a key there."""
    prepare(state)
    state.write_bytes(state.read_bytes().replace(b'"admins"', b' "admins"'))
    for name in ("keys.json", "keys.db"):
        store = LocalStore(state.with_name(name))
        with pytest.raises(StoreDown, match=r"keys\.json is not what was read into .*keys\.db.* Move"):
            await store.open()
        await store.close()
    shutil.move(state.with_name("keys.db"), state.with_name("away.db"))
    await check(state)


async def test_files_that_come_to_a_database_that_was_new(state: Path, tmp_path: Path) -> None:
    prepare(tmp_path / "new" / "keys.json")
    shutil.copy(state, tmp_path / "new" / "keys.json")
    with pytest.raises(StoreDown, match="is not what was read into"):
        prepare(tmp_path / "new" / "keys.json")


async def test_without_the_files_the_database_goes_on(state: Path) -> None:
    prepare(state)
    for file in state.parent.glob("keys.json*"):
        shutil.rmtree(file) if file.is_dir() else file.unlink()
    await check(state)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"keys": {"k": 3}}', "\0", '{"theirs": 1}', "\udcff"])
async def test_a_named_file_that_is_none_is_refused_and_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(text, errors="surrogateescape")
    before = path.read_bytes()
    store = LocalStore(path)
    for attempt in (
        store.open,
        lambda: store.records.put(Tenant(id="t", created=1.0)),
        lambda: store.ledger.sums("", "~"),
    ):
        with pytest.raises(StoreDown, match=r"keys\.json cannot be read"):
            await attempt()
    await store.close()
    assert path.read_bytes() == before


async def test_a_file_of_others_beside_the_database_is_none_of_ours(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text('{"theirs": 1}')
    store = LocalStore(tmp_path / "keys.db")
    await store.open()
    await store.records.put(Tenant(id="t", created=1.0))
    await store.close()
    (tmp_path / "keys.json").write_text('{"theirs": 2}')
    prepare(tmp_path / "keys.db")


async def test_lines_that_are_none_of_ours_are_passed_over(state: Path) -> None:
    folder = state.with_name("keys.json.ledger")
    (folder / "usage-2026-11-21.jsonl").write_bytes(b'\n\xff\xfe\nnull\n[]\n{}\n{"call_id":3}\n')
    (folder / "usage-today.jsonl").write_bytes(b"x")
    await check(state)


@pytest.fixture
def large(state: Path) -> Iterator[Path]:
    """A state whose reading takes a moment."""
    line = msgspec.json.encode(Entry(call_id="c" * 30, time=1795348800.0, key_id="k", tenant="t", route="r", input=1))
    state.with_name("keys.json.ledger").joinpath("usage-2026-11-20.jsonl").write_bytes((line + b"\n") * 100_000)
    yield state


MIGRATE = """
import sys
from pathlib import Path
from gateway.store.local import prepare, rows
from gateway.store.local import earlier
add, done = earlier.add_calls, 0
def told(*arguments):
    global done
    add(*arguments)
    done += 1
    print(done, flush=True)
earlier.add_calls = told
prepare(Path(sys.argv[1]))
"""


async def test_a_process_that_dies_while_it_reads_leaves_nothing_behind(large: Path) -> None:
    for chunk in (1, 5):
        command = [sys.executable, "-c", MIGRATE, str(large)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert process.stdout is not None
            while int(process.stdout.readline()) < chunk:
                pass
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
    prepare(large)
    with closing(sqlite3.connect(large.with_name("keys.db"))) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("SELECT count(*) FROM calls").fetchone() == (100_060,)
        assert connection.execute("SELECT calls, input FROM usage WHERE tenant = 't'").fetchone() == (100_000, 100_000)


async def test_the_earlier_version_can_be_gone_back_to(state: Path) -> None:
    """The query in docs/state.md writes the file that it reads."""
    prepare(state)
    page = (Path(__file__).parents[5] / "docs" / "state.md").read_text()
    query = "SELECT json_object" + page.partition('"SELECT json_object')[2].partition('" > keys.json')[0]
    with closing(sqlite3.connect(state.with_name("keys.db"))) as connection:
        (text,) = connection.execute(query).fetchone()
    written, read = json.loads(text), json.loads(state.read_text())
    assert written == read and set(written) == {"keys", "tenants", "admins", "orders"}
