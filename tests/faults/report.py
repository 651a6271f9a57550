"""The table that `make test-faults` prints at its end: what was tried, what was expected, what was seen."""

from __future__ import annotations

import pytest

HEADINGS = ("case", "tries", "expected", "seen", "number")
Row = tuple[str, str, str, str, str]
ROWS = pytest.StashKey[list[Row]]()


class Report:
    """Rows in the order in which the cases were run."""

    def __init__(self, rows: list[Row]) -> None:
        self._rows = rows

    def add(self, case: str, tries: int, expected: str, seen: str, number: str = "") -> None:
        """`number` is the measurement that a reader will want to quote."""
        self._rows.append((case, f"{tries:,}", expected, seen, number))


def write(reporter: pytest.TerminalReporter, rows: list[Row]) -> None:
    """Print the table; nothing if no case has told anything."""
    if not rows:
        return
    reporter.section("exactness and faults")
    table = [HEADINGS, *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        reporter.write_line(line.rstrip())
