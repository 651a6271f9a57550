"""Records as tables that people read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from rich.table import Table
from rich.text import Text

from gateway.cli.session import console, when
from gateway.config.units import COUNT, MONEY
from gateway.core.dimensions import COUNTS
from gateway.core.types import Limit

_SELF_EVIDENT = {"id", "version", "status", "secrets", "created"}
_TIMES = ("created", "expires", "revoked", "not_after", "time", "until")


def rows(columns: tuple[str, ...], lines: list[tuple[object, ...]], nothing: str) -> None:
    """Print a table, or in its stead what there is to say about nothing."""
    if not lines:
        console().print(nothing, markup=False)
        return
    table = Table(*columns, box=None, pad_edge=False)
    for line in lines:
        table.add_row(*(Text(str(cell)) for cell in line))
    console().print(table)


def fields(shown: dict[str, Any]) -> None:
    """Print one record, a line for each field that says something."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in shown.items():
        if value not in (None, "", [], {}):
            table.add_row(Text(name.replace("_", " ")), Text(_told(name, value)))
    console().print(table)


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
