"""What the soak shows while it runs, and its tables at the end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text
from soak.chaos import Chaos
from soak.invariants import Row
from soak.tally import Tally

PLAIN_SECONDS = 5.0
"""Between two lines where there is no terminal."""


class Progress:
    """One line: kept up to date on a terminal, printed now and then elsewhere, not at all if `quiet`."""

    def __init__(self, console: Console, tally: Tally, chaos: Chaos, seconds: float, *, quiet: bool) -> None:
        self._console, self._tally, self._chaos, self._seconds = console, tally, chaos, seconds
        self._live = Live(console=console, transient=True, auto_refresh=False) if console.is_terminal else None
        self._quiet, self._told, self._wrong, self._failed = quiet, 0.0, 0, 0
        if self._live is not None and not quiet:
            self._live.start()

    def show(self, phase: str = "") -> None:
        """The state of things; `phase` is what else goes on."""
        if self._quiet:
            return
        for line in self._chaos.failed[self._failed :]:
            self._console.print(line, style="red", markup=False, highlight=False, soft_wrap=True)
        self._failed = len(self._chaos.failed)
        for line in self._tally.wrong[self._wrong :]:
            self._console.print(line, style="red", markup=False, highlight=False, soft_wrap=True)
        self._wrong = len(self._tally.wrong)
        passed, endings = time.monotonic() - self._tally.began, self._tally.endings
        doing = phase or "; ".join(self._chaos.now) or "calm"
        line = (
            f"{_clock(passed)} of {_clock(self._seconds)}  {self._tally.calls:,} calls  "
            f"{endings['answered']:,} answered  {endings['left']:,} left  "
            f"{endings['error status'] + endings['error event']:,} errors  {endings['WRONG']} wrong  | {doing}"
        )
        if self._live is not None:
            self._live.update(Text(line, style="red" if endings["WRONG"] else ""), refresh=True)
        elif passed - self._told >= PLAIN_SECONDS or phase:
            self._told = passed
            self._console.print(line, soft_wrap=True, highlight=False)

    def stop(self) -> None:
        if self._live is not None:
            self._live.stop()


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def print_report(console: Console, report: dict[str, Any], rows: Sequence[Row], wrong: Sequence[str]) -> None:
    """The tables: calls by kind, chaos, invariants; and what was wrong."""
    endings = sorted({ending for found in report["kinds"].values() for ending in found})
    _print(console, "calls", ("kind", *endings), [
        (kind, *(f"{found.get(ending, 0):,}" for ending in endings)) for kind, found in sorted(report["kinds"].items())
    ])  # fmt: skip
    _print(console, "chaos", ("event", "times", "seconds"), [
        (name, f"{times}", f"{seconds:.0f}") for name, (times, seconds) in sorted(report["chaos"].items())
    ])  # fmt: skip
    headings = ("MiB at calls", "warm", "first quarter", "half", "third quarter", "end")
    _print(console, "memory of the gateway that lived through all", headings, report["memory"])
    _print(console, "invariants", ("", "invariant", "expected", "seen"), [
        ("ok" if row.ok else "VIOLATED", row.name, row.expected, row.seen) for row in rows
    ])  # fmt: skip
    for line in wrong:
        console.print(line, style="red", markup=False, soft_wrap=True)
    console.print(report["summary"], highlight=False, soft_wrap=True)


def _print(console: Console, title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style="red" if cell == "VIOLATED" else "") for cell in row))
    console.print(table)
    console.print()


def events_of(chaos: Chaos) -> dict[str, tuple[int, float]]:
    """How often each event happened, and for how many seconds in all."""
    found: dict[str, tuple[int, float]] = {}
    for event in chaos.happened:
        times, seconds = found.get(event.name, (0, 0.0))
        found[event.name] = (times + 1, seconds + (event.until or event.at) - event.at)
    return found
