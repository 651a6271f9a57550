"""The ledger in the state file: what is kept for how long, and counts that no engine should report."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.core.types import Entry
from gateway.store.local.database import Database
from gateway.store.local.ledger import LocalLedger
from gateway.store.local.rows import MOST

DAY = 86400.0


def entry(call: str = "c", time: float = 1795348800.0, n: int = 1, **fields: Any) -> Entry:
    counts = {"input": n, "output": n, **fields}
    return Entry(call_id=call, time=time, key_id="k", tenant="t", route="r", target="a", **counts)


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(tmp_path / "keys.db")
    yield database
    await database.close()


async def rows(database: Database, query: str) -> list[tuple[Any, ...]]:
    return await database.read(lambda connection: connection.execute(query).fetchall())


async def test_every_call_has_a_row(database: Database) -> None:
    ledger = LocalLedger(database)
    full = Entry(
        call_id="c-1",
        time=1795348800.25,
        key_id="k",
        tenant="t|%",
        route="r",
        target="a",
        endpoint="chat/completions",
        outcome="gone",
        input=5,
        cached=4,
        output=3,
        cost_micros=2,
        source="counted",
    )
    await ledger.append("b", [full, entry("c-2")])
    columns = ", ".join(Entry.__struct_fields__)
    first, second = await rows(database, f"SELECT {columns} FROM calls ORDER BY number")
    assert Entry(**dict(zip(Entry.__struct_fields__, first, strict=True))) == full
    assert second[0] == "c-2"


async def test_the_oldest_calls_go_when_there_are_too_many_and_the_sums_stay(database: Database) -> None:
    ledger = LocalLedger(database, max_calls=25)
    for i in range(20):
        await ledger.append(f"b-{i}", [entry(f"call-{i}-{j}", 1795348800.0 + i // 7 * DAY) for j in range(3)])
    kept = [call for (call,) in await rows(database, "SELECT call_id FROM calls ORDER BY number")]
    assert kept == [f"call-{i // 3}-{i % 3}" for i in range(35, 60)]
    assert [each.calls for each in await ledger.sums("", "~")] == [21, 21, 18]
    assert await ledger.by_target() == {"a": (60, 60)}


async def test_sums_go_after_400_days(database: Database) -> None:
    ledger, now = LocalLedger(database), time.time()
    for number, age in enumerate((402, 399, 0)):
        await ledger.append(f"b-{number}", [entry(time=now - age * DAY)])
    assert len(await ledger.sums("", "~")) == 2
    assert await ledger.by_target() == {"a": (3, 3)}
    await ledger.append("ahead", [entry(time=now + 4000 * DAY)])
    assert len(await ledger.sums("", "~")) == 3, "a clock that is ahead makes nothing old"


async def test_only_the_newest_batches_are_known_again(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.store.local.ledger.REMEMBERED", 10)
    ledger = LocalLedger(database)
    for i in range(15):
        await ledger.append(f"b-{i}", [entry()])
    await ledger.append("b-5", [entry()])
    assert (await rows(database, "SELECT count(*) FROM batches")) == [(10,)]
    assert (await ledger.sums("", "~"))[0].calls == 15


async def test_counts_that_nothing_can_hold_are_cut(database: Database) -> None:
    ledger = LocalLedger(database)
    await ledger.append("b-1", [entry(n=10**30, cost_micros=2**63), entry(n=1)])
    await ledger.append("b-2", [entry(n=2**64), entry(n=MOST)])
    (found,) = await ledger.sums("", "~")
    assert (found.calls, found.input, found.cost_micros) == (4, 3 * MOST + 1, MOST)
