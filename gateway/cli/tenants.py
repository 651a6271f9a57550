"""`trunkline tenants`: the limits and budgets above those of keys."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from gateway.admin.models import TenantChange, TenantDeleted
from gateway.admin.operations import change_tenant, delete_tenant
from gateway.admin.standing import tenant_held
from gateway.admin.views import tenant, tenants
from gateway.cli.clear import cleared
from gateway.cli.options import Parsed, collected, combined, label, limit_change, limit_options, storage
from gateway.cli.session import command, registrar
from gateway.cli.standing import holding, routing_option, tell_standing
from gateway.cli.suggesting import Group
from gateway.cli.tables import fields, limits, rows
from gateway.config import Settings
from gateway.store import Store


@click.group(cls=Group, name="tenants")
def tenants_() -> None:
    """Set, list and show tenants: limits and budgets above those of keys."""


@tenants_.command(name="set")
@click.argument("tenant_id")
@limit_options
@click.option(
    "--storage",
    "storages",
    multiple=True,
    type=Parsed("FIELD=NUMBER", storage),
    help="What it may store: bytes=20GiB, files=5000, batches=50, lines=100k, days=90. Repeatable.",
)
@click.option(
    "--label",
    "labels",
    multiple=True,
    type=Parsed("NAME=VALUE", label),
    help="For your own use, such as owner=search. Repeatable.",
)
@click.option(
    "--clear",
    "clears",
    multiple=True,
    type=Parsed("FIELD", cleared),
    help="Remove a limit or a label: rpm, budget, budget:day, budget:day:tokens, outage:rpm, storage:bytes, "
    "label:NAME, ... Repeatable.",
)
@command
async def set_tenant(store: Store, settings: Settings, as_json: bool, tenant_id: str, **options: Any) -> None:
    """Change a tenant, for the very next call: what is given is set, the rest stays."""
    change = combined(collected(options["clears"]), _change(options))
    if wrong := change.keys() - {"limit", "storage", "labels"}:
        raise ValueError(f"--clear: a tenant has no {', '.join(sorted(wrong))}")
    body = msgspec.convert(change, TenantChange)
    await change_tenant(store, registrar(store, settings), tenant_id, body)
    await _show(store, as_json, tenant_id)


@tenants_.command(name="list")
@command
async def list_tenants(store: Store, settings: Settings, as_json: bool) -> None:
    """List tenants by name: those that were set, and those that keys name."""
    found = await tenants(store)
    if as_json:
        click.echo(msgspec.json.encode(found))
        return
    lines: list[tuple[object, ...]] = [(each.id, each.keys, limits(each.limit) or "-") for each in found]
    rows(("tenant", "keys", "limits"), lines, "No tenants yet; `trunkline tenants set NAME --rpm 600` makes one.")


@tenants_.command()
@click.argument("tenant_id")
@routing_option
@command
async def show(store: Store, settings: Settings, as_json: bool, tenant_id: str, routing: str | None) -> None:
    """Show one tenant, the limits that hold for it, and what is left of them."""
    held = await tenant_held(store, holding(settings, routing), tenant_id)
    if as_json:
        click.echo(msgspec.json.encode(held))
        return
    await _show(store, as_json, tenant_id)
    tell_standing(held.standing)


@tenants_.command()
@click.argument("tenant_id")
@command
async def delete(store: Store, settings: Settings, as_json: bool, tenant_id: str) -> None:
    """Delete what is set of a tenant that has no keys; what it has used stays in the ledger."""
    buried = await delete_tenant(store, registrar(store, settings), tenant_id)
    told = msgspec.json.encode(TenantDeleted(buried.id, buried.version))
    click.echo(told if as_json else f"Tenant {tenant_id} is deleted.")


async def _show(store: Store, as_json: bool, tenant_id: str) -> None:
    found = await tenant(store, tenant_id)
    if as_json:
        click.echo(msgspec.json.encode(found))
        return
    shown = {name: getattr(found, name) for name in found.__struct_fields__}
    fields({**shown, "storage": msgspec.to_builtins(found.storage)})


def _change(options: dict[str, Any]) -> dict[str, Any]:
    change: dict[str, Any] = {}
    if limit := limit_change(options):
        change["limit"] = limit
    if options["storages"]:
        change["storage"] = collected(options["storages"])
    if options["labels"]:
        change["labels"] = collected(options["labels"])
    return change
