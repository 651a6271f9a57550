"""The ledger in files: rotation and its bound, crashes, full disks, other processes."""

from __future__ import annotations

import asyncio
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from gateway.core.types import Entry
from gateway.store import StoreDown
from gateway.store.local.ledger import FileLedger

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC).timestamp()
DAY = 86400.0
TODAY = "usage-2026-11-22.jsonl"


def entry(call: str = "c", time: float = NOON, n: int = 1) -> Entry:
    return Entry(call_id=call, time=time, key_id="k", tenant="t", route="r", target="a", input=n, output=n)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "usage.lock")


def written(folder: Path, files: list[str]) -> list[str]:
    lines = [line for name in files for line in (folder / name).read_bytes().splitlines()]
    return [msgspec.json.decode(line)["call_id"] for line in lines]


async def counted(ledger: FileLedger) -> int:
    return sum(each.calls for each in await ledger.sums("0000-01-01", "9999-12-31"))


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes: a write stops there, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_day_has_a_file_of_json_lines_that_only_its_owner_reads(tmp_path: Path) -> None:
    ledger = FileLedger(tmp_path / "usage")
    await ledger.append("b", [entry("c-1"), entry("c-2", NOON + DAY)])
    assert names(tmp_path / "usage") == [TODAY, "usage-2026-11-23.jsonl"]
    file = tmp_path / "usage" / TODAY
    assert file.stat().st_mode & 0o777 == 0o600
    assert msgspec.json.decode(file.read_bytes(), type=Entry) == entry("c-1")
    assert file.read_bytes().endswith(b"}\n")


async def test_a_file_that_is_full_is_numbered_and_a_new_one_begun(tmp_path: Path) -> None:
    ledger = FileLedger(tmp_path, file_bytes=1000)
    for i in range(40):
        await ledger.append(f"b-{i}", [entry(f"call-{i:03}")])
    found = names(tmp_path)
    assert TODAY in found and f"{TODAY}.1" in found and f"{TODAY}.2" in found
    assert all((tmp_path / name).stat().st_size <= 1000 for name in found)
    in_order = [*(f"{TODAY}.{i}" for i in range(1, len(found))), TODAY]
    calls = written(tmp_path, in_order)
    assert calls == [f"call-{i:03}" for i in range(40)]
    assert await counted(ledger) == 40 and await ledger.by_target() == {"a": (40, 40)}


async def test_numbers_go_on_after_nine(tmp_path: Path) -> None:
    ledger = FileLedger(tmp_path, file_bytes=1)
    for i in range(13):
        await ledger.append(f"b-{i}", [entry(f"call-{i}")])
    assert {f"{TODAY}.{i}" for i in range(1, 13)} | {TODAY} == set(names(tmp_path))
    assert msgspec.json.decode((tmp_path / f"{TODAY}.12").read_bytes())["call_id"] == "call-11"


async def test_the_oldest_files_go_when_there_is_too_much(tmp_path: Path) -> None:
    ledger = FileLedger(tmp_path, file_bytes=1000, total_bytes=5000)
    for i in range(200):
        await ledger.append(f"b-{i}", [entry(f"call-{i:03}", NOON + i // 20 * DAY)])
        if i % 7 == 0:
            assert (await ledger.by_target())["a"][0] == i + 1, "counts of dropped files stay"
        assert sum((tmp_path / name).stat().st_size for name in names(tmp_path)) <= 5000
    days = sorted({each.day for each in await ledger.sums("0000-01-01", "9999-12-31")})
    assert days[-1] == "2026-12-01" and days[0] > "2026-11-25"
    assert (await ledger.by_target())["a"] == (200, 200)


async def test_a_line_that_a_crash_cut_is_passed_over(tmp_path: Path) -> None:
    ledger = FileLedger(tmp_path)
    await ledger.append("b-1", [entry("c-1"), entry("c-2")])
    assert await ledger.by_target() == {"a": (2, 2)}
    with (tmp_path / TODAY).open("ab") as file:
        file.write(b'{"call_id":"c-3","time":1795')
    for reader in (ledger, FileLedger(tmp_path)):
        assert await counted(reader) == 2 and await reader.by_target() == {"a": (2, 2)}
    again = FileLedger(tmp_path)
    await again.append("b-1", [entry("c-4")])
    for reader in (ledger, again, FileLedger(tmp_path)):
        assert await counted(reader) == 3 and await reader.by_target() == {"a": (3, 3)}


async def test_lines_that_are_none_of_ours_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / TODAY).write_bytes(b'\n\xff\xfe\nnull\n[]\n{}\n{"call_id":3}\n')
    (tmp_path / "usage-today.jsonl").write_bytes(b"x")
    ledger = FileLedger(tmp_path)
    assert await counted(ledger) == 0
    await ledger.append("b", [entry()])
    assert await counted(ledger) == 1


async def test_a_batch_that_the_disk_has_no_room_for_is_not_there_by_halves(tmp_path: Path) -> None:
    ledger = FileLedger(tmp_path)
    await ledger.append("b-1", [entry("c-1")])
    size = (tmp_path / TODAY).stat().st_size
    batch = [entry("c-2", NOON - DAY), *(entry(f"c-{i}") for i in range(3, 10))]
    with disk_of(3 * size), pytest.raises(StoreDown):
        await ledger.append("b-2", batch)
    assert await counted(ledger) == 1
    assert (tmp_path / TODAY).stat().st_size == size
    await ledger.append("b-2", batch)
    await ledger.append("b-2", batch)
    assert await counted(ledger) == 9 and await ledger.by_target() == {"a": (9, 9)}


async def test_files_that_cannot_be_used_are_a_store_that_is_down(tmp_path: Path) -> None:
    (tmp_path / "usage").write_text("a file where the folder should be")
    ledger = FileLedger(tmp_path / "usage")
    with pytest.raises(StoreDown):
        await ledger.append("b-1", [entry()])
    with pytest.raises(StoreDown):
        await ledger.sums("2026-11-22", "2026-11-22")
    (tmp_path / "usage").unlink()
    assert await ledger.sums("2026-11-22", "2026-11-22") == [] and not (tmp_path / "usage").exists()
    await ledger.append("b-1", [entry()])
    assert await counted(ledger) == 1


WRITER = """
import asyncio, sys, time
from pathlib import Path
from gateway.core.types import Entry
from gateway.store.local.ledger import FileLedger
NOON, name = 1795348800.0, sys.argv[2]
async def main():
    ledger = FileLedger(Path(sys.argv[1]), file_bytes=1500)
    while not Path(sys.argv[3]).exists():
        time.sleep(0.001)
    for i in range(150):
        lines = [
            Entry(call_id=f"{name}-{i}-{j}", time=NOON + j % 2 * 86400, key_id="k", tenant="t", route="r")
            for j in range(4)
        ]
        await ledger.append(f"{name}-{i}", lines)
asyncio.run(main())
"""


async def test_processes_that_write_at_once_lose_and_tear_nothing(tmp_path: Path) -> None:
    folder, start = tmp_path / "usage", tmp_path / "start"
    command = [sys.executable, "-c", WRITER, str(folder)]
    writers = [subprocess.Popen([*command, str(i), str(start)], stderr=subprocess.PIPE) for i in range(3)]
    await asyncio.sleep(0.5)
    start.touch()
    reader, seen = FileLedger(folder), 0
    while any(writer.poll() is None for writer in writers):
        found = await counted(reader)
        assert found >= seen
        seen = found
        await asyncio.sleep(0.01)
    assert [writer.communicate()[1] for writer in writers] == [b"", b"", b""]
    assert await counted(reader) == 3 * 150 * 4
    calls = written(folder, names(folder))
    assert len(calls) == len(set(calls)) == 1800
