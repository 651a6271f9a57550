"""Records as tables that people read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import click
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gateway.cli.session import console, when
from gateway.config.units import COUNT, MONEY
from gateway.core.dimensions import COUNTS
from gateway.core.types import Limit

_SELF_EVIDENT = {"id", "version", "status", "secrets", "created"}
_TIMES = ("created", "expires", "revoked", "not_after", "time", "until")

GAP = 2
"""Spaces between two columns."""


def rows(
    columns: tuple[str, ...],
    lines: list[tuple[object, ...]],
    nothing: str,
    *,
    spare: tuple[str, ...] = (),
    right: tuple[str, ...] = (),
) -> None:
    """Print a table, or in its stead what there is to say about nothing.

    Columns of `right` are numbers. No number and no id is ever cut. Where there is no room the columns that are empty
    go, then those of `spare`, in this order; then texts go on in the next line; and where even the longest words have
    no room, each line is a block.
    """
    out = console()
    if not lines:
        out.print(nothing, markup=False)
        return
    cells = [[str(cell) for cell in line] for line in lines]
    kept, left_out = [*range(len(columns))], list[str]()
    empty = [number for number in kept if not any(line[number] for line in cells)]
    for number in (*empty, *(columns.index(name) for name in spare)):
        if _width(columns, cells, kept, str.splitlines) <= out.width:
            break
        if number in kept:
            kept.remove(number)
            left_out += [columns[number]] if number not in empty else []
    if _width(columns, cells, kept, str.split) > out.width:
        for line in cells:
            _blocks(out, {columns[number]: line[number] for number in kept})
    else:
        table = Table(box=None, pad_edge=False)
        for number, width in zip(kept, _narrowed(columns, cells, kept, out.width), strict=True):
            table.add_column(columns[number], width=width, justify="right" if columns[number] in right else "left")
        for line in cells:
            table.add_row(*(Text(line[number]) for number in kept))
        out.print(table)
    if left_out:
        click.echo(f"No room for {', '.join(left_out)}: widen the window, or use --json.", err=True)


def _widest(columns: tuple[str, ...], cells: list[list[str]], number: int, parts: Callable[[str], list[str]]) -> int:
    """The longest part of the texts in a column, its title among them."""
    texts = [columns[number], *(line[number] for line in cells)]
    return max((cell_len(part) for text in texts for part in parts(text)), default=0)


def _width(columns: tuple[str, ...], cells: list[list[str]], kept: list[int], parts: Callable[[str], list[str]]) -> int:
    return sum(_widest(columns, cells, number, parts) + GAP for number in kept) - GAP


def _narrowed(columns: tuple[str, ...], cells: list[list[str]], kept: list[int], most: int) -> list[int]:
    """The widths of the columns, together no more than `most`: the widest gives way, down to its longest word."""
    widths = [_widest(columns, cells, number, str.splitlines) for number in kept]
    least = [_widest(columns, cells, number, str.split) for number in kept]
    while sum(widths) + GAP * (len(widths) - 1) > most:
        room = [width if width > word else 0 for width, word in zip(widths, least, strict=True)]
        widths[room.index(max(room))] -= 1
    return widths


def _blocks(out: Console, line: dict[str, str]) -> None:
    """One line of a table as a block of lines; what is too long even so is the terminal's to wrap."""
    widest = max(map(len, line))
    for name, text in line.items():
        if text:
            out.print(f"{name:<{widest}} {text}", markup=False, soft_wrap=True)
    out.print()


def fields(shown: dict[str, Any]) -> None:
    """Print one record, a line for each field that says something; what is too long is the terminal's to wrap."""
    told = {
        name.replace("_", " "): _told(name, value)
        for name, value in shown.items()
        if value not in (None, "", [], {}, ())
    }
    widest, out = max(map(len, told), default=0), console()
    for name, text in told.items():
        for number, line in enumerate(text.split("\n")):
            out.print(f"{'' if number else name:<{widest}} {line}", markup=False, soft_wrap=True)


def limits(limit: Limit) -> str:
    """All of a limit in a line: `600 rpm, 20k tpm, 2M tokens/day, 50 money/month`."""
    parts = [f"{_count(value)} {name}" for name in COUNTS if (value := getattr(limit, name)) is not None]
    for period in ("day", "week", "month"):
        allowance = getattr(limit.budget, period)
        if allowance.tokens is not None:
            parts.append(f"{_count(allowance.tokens)} tokens/{period}")
        if allowance.cost_micros is not None:
            parts.append(f"{MONEY.shown(allowance.cost_micros)} money/{period}")
    return ", ".join(parts)


def differences(before: dict[str, Any], after: dict[str, Any], path: str = "") -> Iterator[str]:
    """What changed, leaf by leaf: `limit.rpm: 10 -> 20`; `-` is nothing."""
    for name in sorted({*before, *after} - _SELF_EVIDENT):
        old, new = before.get(name), after.get(name)
        if isinstance(old, dict) or isinstance(new, dict):
            yield from differences(old or {}, new or {}, f"{path}{name}.")
        elif old != new:
            yield f"{path}{name}: {_short(name, old)} -> {_short(name, new)}"


def _told(name: str, value: Any) -> str:
    if name in _TIMES and isinstance(value, float | int):
        return when(value)
    if isinstance(value, Limit):
        outages = [f"{dimension} {policy} in an outage" for dimension, policy in value.outage.items()]
        return ", ".join(filter(None, [limits(value), *outages])) or "the defaults of the table"
    if isinstance(value, dict):
        return "\n".join(f"{key}: {_told('', each)}" for key, each in value.items())
    if isinstance(value, list | tuple) and all(isinstance(each, str) for each in value):
        return ", ".join(value)
    return value if isinstance(value, str) else json.dumps(value)


def _short(name: str, value: Any) -> str:
    return "-" if value in (None, "", [], {}) else _told(name, value)


def _count(number: int) -> str:
    return str(COUNT.shown(number))
