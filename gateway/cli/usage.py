"""`trunkline usage`: what keys, tenants and models have used, summed from the ledger."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from typing import Any

import click

from gateway.cli.options import Parsed
from gateway.cli.session import command
from gateway.cli.tables import rows
from gateway.config import Settings
from gateway.config.units import MONEY
from gateway.core.types import KeyRecord
from gateway.metering.ledger import COLUMNS, COUNTED, grouped
from gateway.store import Store

NUMBERS = ("calls", "input", "cached", "output", "tokens", "cost")


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r}: expected a day such as 2026-11-22") from None


def _columns(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in COLUMNS:
            raise ValueError(f"{name!r}: expected some of {', '.join(COLUMNS)}, separated by commas")
    return names


@click.command()
@click.option(
    "--by",
    type=Parsed("COLUMN,...", _columns),
    default="tenant,model",
    show_default=True,
    help="What to sum by: some of day, key, tenant, model, in the order of the columns.",
)
@click.option("--from", "first", type=Parsed("DAY", _day), help="The first UTC day. [default: the first of the month]")
@click.option("--to", "last", type=Parsed("DAY", _day), help="The last UTC day. [default: today]")
@click.option("--key", "key_id", help="Only what this key used, by its id.")
@click.option("--tenant", help="Only what this tenant used.")
@click.option("--model", help="Only what was used of this model, by its route's name.")
@command
async def usage(store: Store, settings: Settings, as_json: bool, by: tuple[str, ...], **options: Any) -> None:
    """Show calls, tokens and costs, summed by tenant and model, or as --by says. Days are in UTC."""
    last = options["last"] or datetime.now(UTC).date()
    first = options["first"] or last.replace(day=1)
    if first > last:
        raise ValueError(f"--from {first} is after --to {last}")
    wanted = {"key_id": options["key_id"], "tenant": options["tenant"], "route": options["model"]}
    wanted = {name: value for name, value in wanted.items() if value is not None}
    sums = [
        each
        for each in await store.ledger.sums(first.isoformat(), last.isoformat())
        if all(getattr(each, name) == value for name, value in wanted.items())
    ]
    found = grouped(sums, by)
    (total,) = grouped(sums, ()) or [dict.fromkeys(COUNTED, 0)]
    if "key" in by:
        names = {record.id: record.name for record in await store.records.all(KeyRecord)}
        found = [_named(row, names) for row in found]
    if as_json:
        span = {"from": first.isoformat(), "to": last.isoformat(), "by": by}
        click.echo(json.dumps({**span, "rows": [_whole(row) for row in found], "total": _whole(total)}))
    elif found:
        _show(found, total)
    else:
        click.echo(f"Nothing was used from {first} to {last}.")


def _named(row: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """The row with the key's name behind its id; None: there is no such key any more."""
    shown: dict[str, Any] = {}
    for name, value in row.items():
        shown[name] = value
        if name == "key":
            shown["name"] = names.get(value)
    return shown


def _whole(row: dict[str, Any]) -> dict[str, Any]:
    """The row with input and output together."""
    return {**row, "tokens": row["input"] + row["output"]}


def _show(found: list[dict[str, Any]], total: dict[str, Any]) -> None:
    labels = [name for name in found[0] if name not in COUNTED]
    lines: list[tuple[object, ...]] = [(*(row[name] or "" for name in labels), *_numbers(row)) for row in found]
    if len(found) > 1:
        lines.append(("total", *[""] * (len(labels) - 1), *_numbers(total)))
    rows((*labels, *NUMBERS), lines, "", spare=("cached", "tokens"), right=NUMBERS)


def _numbers(row: dict[str, Any]) -> list[str]:
    counts = (row["calls"], row["input"], row["cached"], row["output"], row["input"] + row["output"])
    return [*(f"{count:,}" for count in counts), MONEY.shown(row["cost_micros"])]
