"""`trunkline admin`: admin keys, the audit log, and the admin listener itself."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from typing import Any

import click
import msgspec

from gateway.admin import views
from gateway.admin.models import NewAdminKey
from gateway.admin.operations import lifetime
from gateway.auth.token import ADMIN, mint
from gateway.cli.options import Quantity
from gateway.cli.session import command, registrar, when
from gateway.cli.suggesting import Group
from gateway.cli.tables import differences, rows
from gateway.config import Settings
from gateway.config.units import DURATION
from gateway.core.types import AdminKey, Audit
from gateway.store import Store


@click.group(cls=Group)
def admin() -> None:
    """Create, list and revoke admin keys, read the audit log, serve the admin interface."""


@admin.command()
@click.option("--name", required=True, help="Whose it is; shown in lists and in the audit log.")
@click.option("--expires", type=Quantity(DURATION), help="How long it is valid from now, such as 90d.")
@command
async def create(store: Store, settings: Settings, as_json: bool, name: str, expires: float | None) -> None:
    """Create an admin key and show it, once."""
    now = time.time()
    body = msgspec.convert({"name": name, "expires": None if expires is None else now + expires}, NewAdminKey)
    record, secret = await registrar(store, settings).create_admin(body.name, lifetime=lifetime(body.expires, now))
    if as_json:
        click.echo(msgspec.json.encode(views.issued_admin(record, secret)))
        return
    click.echo(secret)
    if sys.stdout.isatty():
        click.secho(f"Admin key {record.id} ({name}). The secret is shown this once and kept nowhere.", err=True)


@admin.command(name="list")
@command
async def list_keys(store: Store, settings: Settings, as_json: bool) -> None:
    """List admin keys, the oldest first."""
    found = [views.shown_admin(record) for record in await store.records.all(AdminKey)]
    if as_json:
        click.echo(msgspec.json.encode(found))
        return
    lines: list[tuple[object, ...]] = [
        (key.id, key.name, key.status, "yes" if key.once else "", when(key.created), when(key.expires)) for key in found
    ]
    nothing = "No admin keys yet; `trunkline admin create --name NAME` makes one."
    rows(("id", "name", "status", "one-time", "created", "expires"), lines, nothing)


@admin.command()
@click.argument("key_id")
@command
async def revoke(store: Store, settings: Settings, as_json: bool, key_id: str) -> None:
    """End an admin key for good."""
    record = await registrar(store, settings).revoke_admin(key_id)
    click.echo(
        msgspec.json.encode(views.shown_admin(record)) if as_json else f"Admin key {key_id} ({record.name}) is revoked."
    )


@admin.command()
@click.option("--count", type=click.IntRange(1, 100_000), default=20, show_default=True, help="Entries to show.")
@command
async def audit(store: Store, settings: Settings, as_json: bool, count: int) -> None:
    """Show the newest changes of keys, tenants and admin keys: when, who, what."""
    entries = await store.records.audit(count)
    if as_json:
        click.echo(msgspec.json.encode(entries))
        return
    lines: list[tuple[object, ...]] = [
        (when(entry.time), entry.actor, entry.action, entry.subject, _change(entry)) for entry in entries
    ]
    rows(("time", "who", "action", "what", "change"), lines, "Nothing was changed yet.")


@admin.command(name="hash")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def hash_(as_json: bool) -> None:
    """Make an admin key and the hash by which TRUNKLINE_ADMIN_HASH lets it in; asks no store."""
    token = mint(ADMIN)[1]
    digest = hashlib.sha256(token.encode()).hexdigest()
    if as_json:
        click.echo(json.dumps({"secret": token, "hash": digest}))
        return
    click.echo(f"admin key           {token}\nTRUNKLINE_ADMIN_HASH={digest}")
    if sys.stdout.isatty():
        click.secho("Keep the key, give the gateway the hash; neither is kept here.", err=True)


@admin.command()
@click.argument("routing", required=False, type=click.Path(dir_okay=False))
@click.option("--host", "admin_host", help="Address to listen on. [default: 127.0.0.1]")
@click.option("--port", "admin_port", type=click.IntRange(1, 65535), help="Port. [default: TRUNKLINE_ADMIN_PORT]")
@click.option("--redis-url", help="Where keys and limits live, such as redis://localhost:6379/0.")
@click.option("--state", type=click.Path(dir_okay=False), help="The state file of a gateway without Redis.")
def serve(**options: Any) -> None:
    """Serve the admin interface alone; `trunkline serve --admin-port PORT` starts it beside the gateway."""
    from gateway.cli.serve import serve_admin

    serve_admin(**options)


def _change(entry: Audit) -> str:
    """What a change changed; of a new key, which has everything, the name."""
    after = entry.after or {}
    if entry.before is None and "name" in after:
        return str(after["name"])
    return ", ".join(differences(entry.before or {}, after))
