"""From the end of a call to the ledger: batches, outages, bounds; and sums as people ask for them."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from gateway.core.types import Entry, Sum
from gateway.metering import ledger as module
from gateway.metering.ledger import BATCH, LedgerWriter, grouped
from gateway.store import StoreDown


def entry(call: int) -> Entry:
    return Entry(call_id=str(call), time=0.0, key_id="k", tenant="t", route="r")


class Paper:
    """A ledger that fails as a test says; what it took, batch by batch."""

    def __init__(self) -> None:
        self.batches: dict[str, list[str]] = {}
        self.asked: list[tuple[str, list[str]]] = []
        self.fail: Exception | None = None
        self.lands = False
        """What fails has arrived all the same."""
        self.hold: asyncio.Event | None = None

    async def append(self, batch: str, entries: Sequence[Entry]) -> None:
        calls = [each.call_id for each in entries]
        self.asked.append((batch, calls))
        if self.fail is None or self.lands:
            self.batches.setdefault(batch, calls)
        if self.hold is not None:
            await self.hold.wait()
        if self.fail is not None:
            raise self.fail

    @property
    def calls(self) -> list[int]:
        return [int(call) for batch in self.batches.values() for call in batch]


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same pauses, a twentieth as long."""
    monkeypatch.setattr(module, "FLUSH_SECONDS", 0.01)
    monkeypatch.setattr(module, "AGAIN_SECONDS", (0.01, 0.1))
    monkeypatch.setattr(module, "BETWEEN_SECONDS", 0.0005)


@pytest.fixture
def paper() -> Paper:
    return Paper()


@pytest.fixture
def dropped() -> list[int]:
    return []


@pytest.fixture
async def writer(paper: Paper, dropped: list[int]) -> AsyncIterator[LedgerWriter]:
    sink: Any = paper
    made = LedgerWriter(sink, dropped.append)
    made.open()
    yield made
    await made.close()


async def until(condition: Any) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.002)


async def test_entries_are_written_soon_in_their_order(writer: LedgerWriter, paper: Paper) -> None:
    for i in range(10):
        writer.add(entry(i))
    assert not paper.asked, "adding does not wait for anything"
    await until(lambda: len(paper.calls) == 10)
    writer.add(entry(10))
    await until(lambda: len(paper.calls) == 11)
    assert paper.calls == list(range(11))


async def test_batches_are_small_and_have_names_of_their_own(writer: LedgerWriter, paper: Paper) -> None:
    for i in range(3 * BATCH + 7):
        writer.add(entry(i))
    await until(lambda: len(paper.calls) == 3 * BATCH + 7)
    assert [len(calls) for calls in paper.batches.values()] == [BATCH, BATCH, BATCH, 7]
    boots = {name.rpartition("-")[0] for name in paper.batches}
    assert len(boots) == 1 and all(re.fullmatch(r"[0-9a-f]{12}-\d+", name) for name in paper.batches)
    sink: Any = paper
    other = LedgerWriter(sink)
    other.open()
    other.add(entry(0))
    await other.close()
    assert len({name.rpartition("-")[0] for name in paper.batches}) == 2


@pytest.mark.parametrize("lands", [False, True])
async def test_a_batch_that_failed_comes_again_under_its_name(
    writer: LedgerWriter, paper: Paper, dropped: list[int], lands: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    paper.fail, paper.lands = StoreDown("no answer"), lands
    writer.add(entry(0))
    await until(lambda: len(paper.asked) >= 2)
    for i in range(1, 900):
        writer.add(entry(i))
    await until(lambda: len(paper.asked) >= 4)
    assert {name for name, _ in paper.asked} == {paper.asked[0][0]} and all(calls == ["0"] for _, calls in paper.asked)
    paper.fail = None
    await until(lambda: len(paper.calls) == 900)
    assert paper.calls == list(range(900)) and not dropped
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"], "one line for each change"


async def test_a_long_outage_drops_the_newest_and_counts_them(
    writer: LedgerWriter, paper: Paper, dropped: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 1000)
    paper.fail = StoreDown("down")
    writer.add(entry(0))
    await until(lambda: paper.asked)
    for i in range(1, 1300):
        writer.add(entry(i))
    assert sum(dropped) == 300
    paper.fail = None
    await until(lambda: len(paper.calls) == 1000)
    assert paper.calls == list(range(1000))


async def test_a_bug_in_the_ledger_loses_one_batch_only(
    writer: LedgerWriter, paper: Paper, dropped: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    paper.fail = TypeError("canary-text")
    writer.add(entry(0))
    await until(lambda: dropped == [1])
    paper.fail = None
    writer.add(entry(1))
    await until(lambda: paper.calls == [1])
    assert "TypeError" in caplog.text and "canary" not in caplog.text


async def test_closing_writes_what_is_left(writer: LedgerWriter, paper: Paper, dropped: list[int]) -> None:
    for i in range(1200):
        writer.add(entry(i))
    await writer.close()
    assert paper.calls == list(range(1200)) and not dropped


async def test_closing_sends_a_batch_in_doubt_again(writer: LedgerWriter, paper: Paper, dropped: list[int]) -> None:
    paper.fail, paper.lands = StoreDown("no answer"), True
    writer.add(entry(0))
    await until(lambda: paper.asked)
    writer.add(entry(1))
    asyncio.get_running_loop().call_later(0.05, setattr, paper, "fail", None)
    await writer.close()
    assert paper.calls == [0, 1] and not dropped


@pytest.mark.parametrize("hangs", [False, True])
async def test_closing_does_not_wait_for_ever(
    writer: LedgerWriter, paper: Paper, dropped: list[int], hangs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CLOSE_SECONDS", 0.1)
    paper.hold = asyncio.Event() if hangs else None
    paper.fail = None if hangs else StoreDown("down")
    paper.lands = False
    for i in range(3):
        writer.add(entry(i))
    await writer.close()
    assert dropped == [3]


SUMS = [
    Sum(day="2026-11-22", key_id="k1", tenant="a", route="r", calls=1, input=2, cached=1, output=3, cost_micros=4),
    Sum(day="2026-11-23", key_id="k1", tenant="a", route="s", calls=10, input=20, cached=10, output=30, cost_micros=40),
    Sum(day="2026-11-23", key_id="k2", tenant="b", route="r", calls=100, input=200, output=300),
]


@pytest.mark.parametrize(
    ("by", "calls"),
    [
        (["tenant"], {("a",): 11, ("b",): 100}),
        (["key"], {("k1",): 11, ("k2",): 100}),
        (["model"], {("r",): 101, ("s",): 10}),
        (["day"], {("2026-11-22",): 1, ("2026-11-23",): 110}),
        (["model", "day"], {("r", "2026-11-22"): 1, ("r", "2026-11-23"): 100, ("s", "2026-11-23"): 10}),
        ([], {(): 111}),
    ],
)
def test_sums_are_grouped(by: list[str], calls: dict[tuple[str, ...], int]) -> None:
    rows = grouped(SUMS, by)
    assert [(tuple(row[name] for name in by), row["calls"]) for row in rows] == list(calls.items())
    assert all(list(row) == [*by, "calls", "input", "cached", "output", "cost_micros"] for row in rows)
    assert sum(row["output"] for row in rows) == 333 and sum(row["cost_micros"] for row in rows) == 44


def test_nothing_gives_no_rows_and_unknown_names_are_told() -> None:
    assert grouped([], ["tenant"]) == []
    with pytest.raises(ValueError, match=r"'route'.*day, key, tenant, model"):
        grouped(SUMS, ["route"])
