"""What a gateway without Redis reports: when it is written, and by whom it is taken away."""

from __future__ import annotations

from pathlib import Path

from harness.clock import FixedClock

from gateway.store.local import LocalStore


def store(folder: Path, clock: FixedClock, boot: str = "one") -> LocalStore:
    return LocalStore(folder / "keys.db", clock.now, boot=boot)


async def test_it_is_written_when_it_says_something_new_or_has_grown_old(tmp_path: Path) -> None:
    clock = FixedClock()
    worker = store(tmp_path, clock)
    written = []
    for word, seconds in ((b"a", 0), (b"a", 4.9), (b"b", 0), (b"b", 4.9), (b"b", 0.1), (b"b", 1)):
        clock.advance(seconds)
        before = await worker.board.reports()
        await worker.board.report(word)
        written.append((await worker.board.reports()) != before)
    assert written == [True, False, True, False, True, False]
    await worker.close()


async def test_a_late_gateway_does_not_take_the_next_ones_report_away(tmp_path: Path) -> None:
    clock = FixedClock()
    old, new = store(tmp_path, clock, "old"), store(tmp_path, clock, "new")
    await old.board.report(b"old")
    await new.board.report(b"new")
    await old.close()
    await old.board.report(b"late")
    assert await new.board.reports() == {"new": (b"new", 0.0)}
    await new.close()


async def test_reports_of_gateways_that_died_are_swept(tmp_path: Path) -> None:
    clock = FixedClock()
    old, new = store(tmp_path, clock, "old"), store(tmp_path, clock, "new")
    await old.board.report(b"old")
    clock.advance(11)
    await new.board.report(b"new")
    rows = await new._database.read(lambda connection: connection.execute("SELECT gateway FROM reports").fetchall())
    assert rows == [("new",)]
    await old.close()
    await new.close()
