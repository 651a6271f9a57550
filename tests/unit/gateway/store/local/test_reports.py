"""The file in which a gateway without Redis reports: when it is written, and what is made of what is found."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from harness.clock import FixedClock

from gateway.store import StoreDown
from gateway.store.local.store import MemoryStore


def path_of(folder: Path) -> Path:
    return folder / "keys.json.report"


def store(folder: Path, clock: FixedClock, boot: str = "one") -> MemoryStore:
    return MemoryStore(folder / "keys.json", clock.now, boot=boot)


async def test_it_is_written_when_it_says_something_new_or_has_grown_old(tmp_path: Path) -> None:
    clock = FixedClock()
    worker = store(tmp_path, clock)
    written = []
    for word, seconds in ((b"a", 0), (b"a", 4.9), (b"b", 0), (b"b", 4.9), (b"b", 0.1), (b"b", 1)):
        clock.advance(seconds)
        before = path_of(tmp_path).stat().st_ino if path_of(tmp_path).exists() else None
        await worker.report(word)
        written.append(path_of(tmp_path).stat().st_ino != before)
    assert written == [True, False, True, False, True, False]


async def test_it_is_for_its_owner_only_and_replaced_in_one_step(tmp_path: Path) -> None:
    worker = store(tmp_path, FixedClock())
    await worker.report(b"a")
    with path_of(tmp_path).open("rb") as reading:
        await worker.report(b"longer than before")
        assert reading.read().endswith(b"\na"), "who reads has the old one or the new one, whole"
    assert stat.S_IMODE(path_of(tmp_path).stat().st_mode) == 0o600
    assert sorted(file.name for file in tmp_path.iterdir()) == ["keys.json.report"]


async def test_a_late_gateway_does_not_take_the_next_ones_report_away(tmp_path: Path) -> None:
    clock = FixedClock()
    old, new = store(tmp_path, clock, "old"), store(tmp_path, clock, "new")
    await old.report(b"old")
    await new.report(b"new")
    await old.close()
    await old.report(b"late")
    assert await new.reports() == {"new": (b"new", 0.0)}


@pytest.mark.parametrize("text", [b"", b"\n", b"one", b"one x\nword", b"one 1 2\nword", b"\xff 1\nword", b"\0" * 99])
async def test_what_is_no_report_is_none(tmp_path: Path, text: bytes) -> None:
    path_of(tmp_path).write_bytes(text)
    assert await store(tmp_path, FixedClock()).reports() == {}


async def test_a_disk_that_does_not_work_is_an_outage(tmp_path: Path) -> None:
    path_of(tmp_path).mkdir()
    worker = store(tmp_path, FixedClock())
    with pytest.raises(StoreDown, match=r"keys\.json\.report cannot be written"):
        await worker.report(b"a")
    with pytest.raises(StoreDown, match=r"keys\.json\.report cannot be read"):
        await worker.reports()
    await worker.close()
