"""The tables that `make test-faults` prints at its end: what was tried, what was expected, what was seen."""

from __future__ import annotations

import re
from typing import Final

import pytest

HEADINGS = ("case", "tries", "expected", "seen", "number")
Row = tuple[str, str, str, str, str]
ROWS = pytest.StashKey[list[Row]]()

FAULTS: Final = {
    1: "a target refuses connections", 2: "SYN black hole", 3: "hangs before headers", 4: "hangs mid-stream",
    5: "RST/FIN mid-stream", 6: "malformed SSE", 7: "SSE line without end", 8: "invalid JSON or HTML with 200",
    9: "500", 10: "429/503 with Retry-After", 11: "flapping 50 %", 12: "all targets bad",
    13: "slow-reading client", 14: "client disconnect", 15: "Redis down", 16: "Redis slow",
    17: "Redis failover, READONLY, MOVED", 18: "Redis FLUSHALL", 19: "Redis out of memory",
    20: "kill -9 one worker", 21: "SIGTERM while streaming", 22: "broken config on reload", 23: "clock jumps",
    24: "10,000 idle connections", 25: "slowloris", 26: "100 MB body", 27: "hostile JSON", 28: "invalid UTF-8",
    29: "header injection", 30: "request smuggling", 31: "SSRF", 32: "key enumeration", 33: "garbage keys",
    34: "address changes, TLS refused", 35: "file limit, full disk", 36: "retries in three layers",
    37: "mixed chaos soak", 38: "an engine stands still, its server answers on",
}  # fmt: skip
"""What can break; a row whose case begins with a number and a space belongs to that one."""
_NUMBERED = re.compile(r"(\d{1,2}) ")


class Report:
    """Rows in the order in which the cases were run."""

    def __init__(self, rows: list[Row]) -> None:
        self._rows = rows

    def add(self, case: str, tries: int, expected: str, seen: str, number: str = "") -> None:
        """`number` is the measurement that a reader will want to quote."""
        self._rows.append((case, f"{tries:,}", expected, seen, number))

    def fault(self, which: int, detail: str, tries: int, expected: str, seen: str, number: str = "") -> None:
        """A row of one of the faults."""
        self.add(f"{which} {FAULTS[which]}{': ' * bool(detail)}{detail}", tries, expected, seen, number)


def write(reporter: pytest.TerminalReporter, rows: list[Row]) -> None:
    """Print the tables; nothing if no case has told anything."""
    if not rows:
        return
    reporter.section("exactness and faults")
    _table(reporter, [row for row in rows if not fault_of(row)])
    found = sorted((row for row in rows if fault_of(row)), key=fault_of)
    reporter.section("the faults")
    missing = [f"{number} {name}" for number, name in FAULTS.items() if number not in map(fault_of, found)]
    _table(reporter, found)
    if missing:
        reporter.write_line(f"not tried in this run: {', '.join(missing)}")


def fault_of(row: Row) -> int:
    """The number of the fault that a row belongs to; 0: of none."""
    match = _NUMBERED.match(row[0])
    return int(match[1]) if match and int(match[1]) in FAULTS else 0


def _table(reporter: pytest.TerminalReporter, rows: list[Row]) -> None:
    table = [HEADINGS, *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        reporter.write_line(line.rstrip())
