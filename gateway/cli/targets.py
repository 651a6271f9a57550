"""`trunkline targets`: how the targets stand, and taking them out of service and back in, for all gateways."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import msgspec

from gateway.admin import targets
from gateway.admin.models import TargetChange, TargetShown
from gateway.admin.targets import Listed
from gateway.cli.drain import SOON_SECONDS, drained
from gateway.cli.options import F, Quantity
from gateway.cli.session import command, registrar, when
from gateway.cli.suggesting import Group
from gateway.cli.tables import rows
from gateway.config import Mistakes, Settings, load_table
from gateway.config.units import COUNT, DURATION
from gateway.store import Store

COLUMNS = ("target", "route", "tier", "backend", "state", "running", "waiting", "prefill", "gateways", "engine", "why")
SPARE = ("tier", "prefill", "gateways", "engine", "backend")


@click.group(cls=Group, name="targets")
def targets_() -> None:
    """List targets as all gateways see them, take them out of service and back in."""


def _routing(command: F) -> F:
    """Where the names come from."""
    return click.option(
        "--routing",
        type=click.Path(dir_okay=False),
        help="The routing table's file. [default: TRUNKLINE_ROUTING, else routing.yaml]",
    )(command)


def _reason(command: F) -> F:
    return click.option("--reason", default="", help="Why; shown in lists and in the audit log.")(command)


@targets_.command(name="list")
@_routing
@command
async def list_targets(store: Store, settings: Settings, as_json: bool, routing: str | None) -> None:
    """List the table's targets: state, calls there by all gateways, orders."""
    found = await targets.targets(store, _table(settings, routing), time.time())
    if as_json:
        click.echo(msgspec.json.encode(found))
        return
    rows(COLUMNS, [_row(target) for target in found], "The table has no targets.", spare=SPARE)


@targets_.command()
@click.argument("name")
@_routing
@_reason
@click.option("--wait", is_flag=True, help="Return when no call runs there any more.")
@click.option(
    "--timeout",
    type=Quantity(DURATION, positive=True),
    default="10m",
    show_default=True,
    help="How long --wait waits; then the command fails, and the target stays drained.",
)
@command
async def drain(
    store: Store, settings: Settings, as_json: bool, name: str, routing: str | None, wait: bool, **options: Any
) -> None:
    """Send a target no new calls, until `undrain`; calls that run there go on."""
    table = _table(settings, routing)
    shown = await _order(store, settings, table, name, TargetChange(state="drained", reason=options["reason"]))
    if wait:
        shown = await drained(store, table, shown, options["timeout"])
    _show(shown, as_json, "No call runs there." if wait else "")


@targets_.command()
@click.argument("name")
@_routing
@_reason
@command
async def undrain(store: Store, settings: Settings, as_json: bool, name: str, routing: str | None, reason: str) -> None:
    """Send a target calls again that was drained or ejected by command."""
    body = TargetChange(state="open", reason=reason)
    _show(await _order(store, settings, _table(settings, routing), name, body), as_json)


@targets_.command()
@click.argument("name")
@click.option(
    "--for",
    "seconds",
    type=Quantity(DURATION, positive=True),
    default="60s",
    show_default=True,
    help="How long; at most a day.",
)
@_routing
@_reason
@command
async def eject(
    store: Store, settings: Settings, as_json: bool, name: str, routing: str | None, seconds: float, reason: str
) -> None:
    """Send a target no new calls for a time, as after many failures; it comes back by itself."""
    given = {"state": "ejected", "seconds": seconds, "reason": reason}
    body = msgspec.convert(given, TargetChange)
    _show(await _order(store, settings, _table(settings, routing), name, body), as_json)


def _table(settings: Settings, routing: str | None) -> dict[str, Listed]:
    """The targets of the table that gateways with these settings serve."""
    path = routing or settings.routing
    try:
        table, _ = load_table(Path(path))
    except Mistakes as error:
        raise click.ClickException(f"{path} cannot be used:\n{error}") from None
    return targets.listed(table)


async def _order(
    store: Store, settings: Settings, table: Mapping[str, Listed], name: str, body: TargetChange
) -> TargetShown:
    await targets.give(store, registrar(store, settings), table, name, body, time.time())
    found = {target.name: target for target in await targets.targets(store, table, time.time())}
    if body.state != "open" and name in found:
        _warn_of_the_last(found, found[name])
    return found.get(name) or await targets.target(store, table, name, time.time())


def _warn_of_the_last(found: Mapping[str, TargetShown], shut: TargetShown) -> None:
    others = [other for other in found.values() if other.route == shut.route and other.name != shut.name]
    if not any(other.order is None and other.listed for other in others):
        click.secho(f"No other target of route {shut.route!r} is open.", fg="yellow", err=True)


def _show(shown: TargetShown, as_json: bool, more: str = "") -> None:
    if as_json:
        click.echo(msgspec.json.encode(shown))
        return
    order = shown.order
    told = "open" if order is None else order.state
    until = "" if order is None or order.until is None else f" until {when(order.until)}"
    heard = f"{len(shown.gateways)} gateway workers report it and hear of this within {SOON_SECONDS:g} s."
    click.echo(f"Target {shown.name} is {told}{until}. {more or heard}")


def _row(target: TargetShown) -> tuple[object, ...]:
    order = target.order
    words = [target.why, "" if target.listed else "not in the table"]
    if order is not None:
        ends = "" if order.until is None else f" until {when(order.until)}"
        words.append(f"ordered {order.state}{ends}" + (f": {order.reason}" if order.reason else ""))
    most = "" if target.max_inflight is None else f"/{target.max_inflight}"
    return (
        target.name,
        target.route,
        target.tier,
        target.backend,
        target.state,
        f"{target.running}{most}",
        target.waiting,
        COUNT.shown(target.prefill),
        len(target.gateways),
        target.version,
        "; ".join(filter(None, words)),
    )
