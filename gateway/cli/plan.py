"""`trunkline plan`: what another routing table would change, before it does."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Final

import click
import msgspec
from msgspec import Struct

from gateway.cli.tables import rows
from gateway.config import Mistake, Mistakes, RouteSpec, Table
from gateway.config.diff import Difference, Meaning, Side, difference, read
from gateway.routing.rendezvous import Rendezvous

HOMED: Final = ("home-cost", "session")
"""Policies under which a conversation has a home."""
SAMPLE: Final = 10_000
"""Conversations that are tried for each route, unless very many routes change."""
MOST_SAMPLES: Final = 2_000_000
_KEYS: Final = 1 << 64
_SIGNS: Final = {"added": "+", "removed": "-", "changed": "~"}


class Move(Struct, frozen=True):
    """How many conversations of a route get another home, and with it a cold cache."""

    route: str
    share: float


@click.command()
@click.argument("old", type=click.Path(dir_okay=False, allow_dash=True))
@click.argument("new", type=click.Path(dir_okay=False, allow_dash=True))
@click.option("--exit-code", is_flag=True, help="End with 2 if anything changes, as scripts may want to know.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def plan(old: str, new: str, exit_code: bool, as_json: bool) -> None:
    """Show what the routing table NEW changes against OLD; one of them may be `-`, standard input.

    Nothing is asked and nothing is changed. Ends with 1 if one of them has mistakes, as told by `trunkline check`.
    """
    if old == new == "-":
        raise click.UsageError("only one of the tables can come from standard input")
    before, after = _side(old, as_json), _side(new, as_json)
    found = difference(before, after)
    moved = list(moves(before.table, after.table))
    if as_json:
        click.echo(json.dumps(_told(old, new, after, found, moved)))
    else:
        _show(old, new, after, found, moved)
    sys.exit(2 if exit_code and found.changes else 0)


def moves(old: Table, new: Table) -> Iterator[Move]:
    """Routes of both tables whose conversations have homes, some of which move."""
    both = [(name, old.routes[name], route) for name, route in new.routes.items() if name in old.routes]
    changed = [
        (name, before, after)
        for name, before, after in both
        if before.policy in HOMED and after.policy in HOMED and _drawn(before) != _drawn(after)
    ]
    count = min(SAMPLE, MOST_SAMPLES // max(1, len(changed)))
    sample = Random(0)  # noqa: S311 - no secret, and the same figures each time
    keys = [sample.getrandbits(64) for _ in range(count)]
    for name, before, after in changed:
        was, becomes = _Homes(before), _Homes(after)
        if moved := sum(was.home(key) != becomes.home(key) for key in keys):
            yield Move(name, moved / count)


class _Homes:
    """Where conversations of a route are at home while all its targets are well."""

    def __init__(self, route: RouteSpec) -> None:
        self._canaries = [(target.name, target.canary) for target in route.targets if target.canary]
        others = [target for target in route.targets if not target.canary] or list(route.targets)
        self._names = [target.name for target in others]
        weights = [target.weight for target in others]
        self._weights = weights if len(set(weights)) > 1 else None
        self._rendezvous = Rendezvous(self._names)

    def home(self, key: int) -> str:
        drawn = key / _KEYS
        for name, share in self._canaries:
            if drawn < share:
                return name
            drawn -= share
        draws = self._rendezvous.draws(key, self._weights)
        return self._names[max(range(len(draws)), key=draws.__getitem__)]


def _drawn(route: RouteSpec) -> set[tuple[str, float, float | None]]:
    """All that a conversation's home depends on."""
    return {(target.name, target.weight, target.canary) for target in route.targets}


def _side(file: str, as_json: bool) -> Side:
    """One of the tables; without it the command ends."""
    name = "standard input" if file == "-" else file
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_bytes().decode()
        return read(text, name)
    except (OSError, UnicodeDecodeError) as error:
        mistakes = [Mistake(name, 1, 1, f"cannot be read: {error}")]
    except Mistakes as found:
        mistakes = found.found
    if as_json:
        click.echo(json.dumps({"ok": False, "mistakes": msgspec.to_builtins(mistakes)}))
    else:
        for mistake in mistakes:
            click.echo(str(mistake), err=True)
        click.secho(f"{name}: {len(mistakes)} mistake{'s' * (len(mistakes) > 1)}", fg="red", err=True)
    sys.exit(1)


def _told(old: str, new: str, after: Side, found: Difference, moved: list[Move]) -> dict[str, object]:
    return {
        "ok": True,
        "old": old,
        "new": new,
        "changed": bool(found.changes),
        **msgspec.to_builtins(found),
        "moves": msgspec.to_builtins(moved),
        "warnings": msgspec.to_builtins(after.document.mistakes),
    }


def _show(old: str, new: str, after: Side, found: Difference, moved: list[Move]) -> None:
    lines = [(_SIGNS[each.what], ".".join(each.path), each.before or "", each.after or "") for each in found.changes]
    rows(("", "what", old, new), list(lines), "Nothing changes.")
    for title, texts in (
        ("Names that lead elsewhere:", map(_meaning, found.names)),
        ("Conversations that get another home, and begin with a cold cache there:", map(_moved, moved)),
        ("Targets that are drained: what they have begun they finish.", found.drained),
        ("Targets whose calls go to another server or model, or with another credential:", found.replaced),
        ("A running gateway will refuse this table:", found.restart),
        ("Warnings:", map(str, after.document.mistakes)),
    ):
        if texts := list(texts):
            click.secho(f"\n{title}", bold=True)
            for text in texts:
                click.echo(f"  {text}")


def _meaning(meaning: Meaning) -> str:
    return f"{meaning.name}: {meaning.before or 'no route'} -> {meaning.after or 'no route'}"


def _moved(move: Move) -> str:
    return f"{move.route}: {move.share:.1%}"
