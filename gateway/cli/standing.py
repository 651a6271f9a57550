"""How the limits of a key or a tenant stand, for people, and the table whose defaults are among them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

import click

from gateway.admin.models import LimitHeld
from gateway.admin.standing import Holding
from gateway.admin.validation import known_routes
from gateway.app.reload import rules
from gateway.cli.options import F
from gateway.cli.tables import rows
from gateway.config import Mistakes, Settings, Table, load_table
from gateway.config.names import matches
from gateway.limits import Rules

COLUMNS = ("limit of", "what", "limit", "used", "left")
MOST_NAMES = 10
UNREAD = "The table's default limits are not among these: {why}"


def routing_option(command: F) -> F:
    """Where the table's own limits, and the names of routes, come from."""
    return click.option(
        "--routing",
        type=click.Path(dir_okay=False),
        help="The routing table, for its limits and names. [default: TRUNKLINE_ROUTING, else routing.yaml]",
    )(command)


def table_of(settings: Settings, routing: str | None) -> Table | str:
    """The table that gateways with these settings serve; why it cannot be had here, if it was not asked for.

    Raises `ValueError` if `routing` names it and it cannot be used.
    """
    path = Path(routing or settings.routing)
    if routing is None and not path.exists():
        return f"there is no {path} here"
    try:
        return load_table(path)[0]
    except Mistakes as error:
        if routing is not None:
            raise ValueError(f"{path} cannot be used:\n{error}") from None
        return f"{path} cannot be used"


def look_at_names(settings: Settings, routing: str | None, limited: Iterable[str], models: Iterable[str]) -> None:
    """Refuse limits on routes that the table does not have, as the admin interface does; warn of unknown models.

    Without a table nothing is known. Raises `ValueError`.
    """
    table = table_of(settings, routing)
    if isinstance(table, str):
        return
    known_routes(limited, table.routes)
    names = sorted({*table.routes, *(alias for route in table.routes.values() for alias in route.aliases)})
    for model in models:
        if not any(matches(model, name) or matches(name, model) for name in names):
            near = difflib.get_close_matches(model, names, 1)
            meant = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(names[:MOST_NAMES])}"
            told = f"{routing or settings.routing} has no route or alias like {model!r}; {meant}"
            click.secho(f"Warning: {told}", fg="yellow", err=True)


def holding(settings: Settings, routing: str | None) -> Holding:
    """What holds under these settings; without a table only what records say, which is told."""
    table, shared = table_of(settings, routing), settings.redis_url is not None
    if isinstance(table, str):
        click.echo(UNREAD.format(why=f"{table} (--routing names another)"), err=True)
        return Holding(Rules(), shared)
    return Holding(rules(table), shared)


def tell_standing(standing: list[LimitHeld]) -> None:
    """Print the limits that hold."""
    click.echo()
    rows(COLUMNS, [_line(each) for each in standing], "No limits hold.")
    if any(each.left is None for each in standing):
        click.echo("Without Redis, what is left of limits other than budgets is known to the gateway alone.", err=True)


def _line(held: LimitHeld) -> tuple[object, ...]:
    def shown(amount: int | None) -> str:
        return "" if amount is None else f"{amount / 1e6:.6g}" if held.unit == "cost" else f"{amount}"

    what = f"{'money' if held.unit == 'cost' else held.unit} a {held.period}" if held.period else held.name
    whose = f"key on {held.route}" if held.route else held.scope
    return whose, what, shown(held.limit), shown(held.used), shown(held.left)
