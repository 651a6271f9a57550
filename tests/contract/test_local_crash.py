"""A process that is killed while it writes the state file: what was acknowledged is there, and nothing by halves."""

from __future__ import annotations

import asyncio
import fcntl
import signal
import sqlite3
import subprocess
import sys
import uuid
from contextlib import closing
from pathlib import Path

import pytest

from gateway.core.types import KeyRecord
from gateway.store.local import LocalStore

WRITER = """
import asyncio, sys
from pathlib import Path
from gateway.core.types import Audit, Entry, KeyRecord
from gateway.store.local import LocalStore

async def calls(store):
    for number in range(100_000):
        entries = [
            Entry(call_id=f"{number}-{n}", time=1795348800.0, key_id="k", tenant="t", route="r", target="a", input=1)
            for n in range(3)
        ]
        await store.ledger.append(f"b-{sys.argv[2]}-{number}", entries)
        print("call", number, flush=True)

async def keys(store):
    for number in range(100_000):
        entry = Audit(time=1.0, actor="a", action="key.create", subject=f"key:{sys.argv[2]}{number}")
        key = KeyRecord(id=f"{sys.argv[2]}{number}", name="n", secrets=(), created=float(number))
        await store.records.put(key, entry)
        print("key", number, flush=True)

async def reports(store):
    for number in range(100_000):
        await store.board.report(b"%d" % number)

async def main():
    store = LocalStore(Path(sys.argv[1]), boot="w")
    await store.open()
    await asyncio.gather(calls(store), keys(store), reports(store))

asyncio.run(main())
"""


@pytest.mark.parametrize("acknowledged", [1, 7, 100])
async def test_what_was_acknowledged_is_there_and_nothing_is_there_by_halves(tmp_path: Path, acknowledged: int) -> None:
    state = tmp_path / "keys.db"
    with subprocess.Popen([sys.executable, "-c", WRITER, str(state), ""], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        lines = [writer.stdout.readline() for _ in range(acknowledged)]
        writer.send_signal(signal.SIGKILL)
        lines += writer.stdout.readlines()
    assert writer.returncode == -signal.SIGKILL
    calls = sum(line.startswith(b"call ") for line in lines)
    keys = sum(line.startswith(b"key ") for line in lines)
    assert (calls and keys) or acknowledged == 1

    store = LocalStore(state)
    await store.open()
    records = [found.id for found in await store.records.all(KeyRecord)]
    subjects = [entry.subject for entry in reversed(await store.records.audit(10**6))]
    sums = await store.ledger.sums("", "~")
    counted = sums[0].calls if sums else 0
    targets = await store.ledger.by_target()
    await store.records.put(KeyRecord(id="after", name="n", secrets=(), created=1e9))
    await store.close()
    assert records == [str(number) for number in range(len(records))] and keys <= len(records) <= keys + 1
    assert subjects == [f"key:{id}" for id in records], "a change and its entry in the log are there together"
    assert 3 * calls <= counted <= 3 * (calls + 1) and counted % 3 == 0, "batches are there whole"
    assert targets == ({"a": (counted, 0)} if counted else {})
    with closing(sqlite3.connect(state)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("SELECT count(*) FROM calls").fetchone() == (counted,)


async def test_a_gateway_goes_on_beside_commands_that_are_killed_while_they_write(tmp_path: Path) -> None:
    state = tmp_path / "keys.db"
    gateway = LocalStore(state, boot="g")
    await gateway.open()
    for name in ("a", "b", "c"):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(state), name], stdout=subprocess.PIPE) as command:
            assert command.stdout is not None
            while not command.stdout.readline().startswith(b"key 3"):
                await gateway.records.put(KeyRecord(id=uuid.uuid4().hex, name="ours", secrets=(), created=1.0))
            command.send_signal(signal.SIGKILL)
        await gateway.records.put(KeyRecord(id=f"after {name}", name="ours", secrets=(), created=1.0))
        known = {found.id for found in await gateway.records.all(KeyRecord)}
        assert {f"{name}{number}" for number in range(4)} | {f"after {name}"} <= known
    await gateway.close()
    again = LocalStore(state)
    await again.open()
    assert {found.id for found in await again.records.all(KeyRecord)} == known
    await again.close()


async def test_who_asked_to_write_first_writes_first(tmp_path: Path) -> None:
    """SQLite gives the file to whoever asks at the right moment: who writes without a pause could keep others out."""
    state = tmp_path / "keys.db"
    first, second = LocalStore(state, boot="a"), LocalStore(state, boot="b")
    await first.open()
    await second.open()
    written: list[str] = []

    async def write(store: LocalStore, name: str) -> None:
        await store.records.put(KeyRecord(id=uuid.uuid4().hex, name=name, secrets=(), created=1.0))
        written.append(name)

    await write(first, "made")
    for _ in range(5):
        with closing(sqlite3.connect(state, isolation_level=None)) as long:
            long.execute("BEGIN IMMEDIATE")
            async with asyncio.TaskGroup() as group:
                group.create_task(write(first, "first"))
                while _free(state.with_name("keys.db.generation")):
                    await asyncio.sleep(0.001)
                group.create_task(write(second, "second"))
                await asyncio.sleep(0.05)  # with a turn of its own it would ask by now
                long.execute("COMMIT")
    assert written == ["made", *["first", "second"] * 5]
    await first.close()
    await second.close()


def _free(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
