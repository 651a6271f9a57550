"""`trunkline keys`: create, list, show, update, rotate and revoke virtual keys, in Redis or in the state file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, get_args

import click
import msgspec

from gateway.admin import views
from gateway.admin.models import Key, KeyChange, NewKey, Status
from gateway.admin.operations import change_key, create_key
from gateway.admin.standing import key_held
from gateway.cli.clear import cleared
from gateway.cli.options import (
    F,
    Parsed,
    Quantity,
    body_options,
    body_rules,
    collected,
    combined,
    label,
    limit_change,
    limit_options,
    model_limit,
)
from gateway.cli.session import command, registrar, when
from gateway.cli.standing import holding, look_at_names, routing_option, tell_standing
from gateway.cli.suggesting import Group
from gateway.cli.tables import fields, limits, rows
from gateway.config import Settings
from gateway.config.units import DURATION
from gateway.core.body_rules import NO_RULES, BodyRules
from gateway.core.types import KeyRecord, Priority
from gateway.store import Store


@click.group(cls=Group)
def keys() -> None:
    """Create, list, show, update, rotate and revoke virtual keys."""


def _key_options(command: F) -> F:
    """What a key is made of besides its name and tenant; the same for making and for changing it."""
    options: list[Callable[[F], F]] = [
        click.option(
            "--model",
            "models",
            multiple=True,
            help="A model it may use, by route name or alias; * stands for any text. Repeatable. [default: *]",
        ),
        click.option(
            "--endpoint",
            "endpoints",
            multiple=True,
            help="An endpoint it may use, such as chat/completions; * stands for any text. Repeatable. [default: *]",
        ),
        click.option("--default-route", help="What its calls ask for that name no model. [default: the table's]"),
        click.option(
            "--user-header",
            help="The header that names the user of a call, such as x-openwebui-user-id; it is believed, logged and "
            "kept in the ledger. [default: none]",
        ),
        limit_options,
        click.option(
            "--model-limit",
            "model_limits",
            multiple=True,
            type=Parsed("ROUTE:rpm=10", model_limit),
            help="Further limits on one route, such as big:rpm=10,tpm=20k,budget:day:tokens=1M. Repeatable.",
        ),
        click.option("--priority", type=click.Choice(get_args(Priority)), help="Who goes first when it is crowded."),
        click.option("--expires", type=Quantity(DURATION), help="How long it is valid from now, such as 30d."),
        click.option(
            "--label",
            "labels",
            multiple=True,
            type=Parsed("NAME=VALUE", label),
            help="For your own use, such as team=search; shown and filtered by. Repeatable.",
        ),
        click.option(
            "--source",
            "sources",
            multiple=True,
            help="A network it may be used from, such as 10.0.0.0/8. Repeatable. [default: anywhere]",
        ),
        body_options,
        routing_option,
    ]
    for option in reversed(options):
        command = option(command)
    return command


@keys.command()
@click.option("--name", required=True, help="What the key is for; shown in lists.")
@click.option("--tenant", default="default", show_default=True, help="Who uses it.")
@_key_options
@command
async def create(store: Store, settings: Settings, as_json: bool, **options: Any) -> None:
    """Create a key and show its secret, once. Limits that are not given are the table's defaults."""
    body = msgspec.convert(_change(options), NewKey)
    look_at_names(settings, options["routing"], body.model_limits, body.models)
    record, secret = await create_key(registrar(store, settings), body, time.time())
    _show_secret(record, secret, as_json)


@keys.command(name="list")
@click.option("--tenant", help="Only this tenant's keys.")
@click.option(
    "--label",
    "labels",
    multiple=True,
    type=Parsed("NAME=VALUE", label),
    help="Only keys with this label, such as team=search. Repeatable.",
)
@click.option("--status", type=click.Choice(get_args(Status)), help="Only keys with this status.")
@command
async def list_keys(
    store: Store,
    settings: Settings,
    as_json: bool,
    tenant: str | None,
    labels: tuple[dict[str, str], ...],
    status: str | None,
) -> None:
    """List keys, the oldest first."""
    found = await views.keys(store, tenant=tenant, status=status, labels=collected(labels))
    if as_json:
        click.echo(msgspec.json.encode(found))
        return
    lines: list[tuple[object, ...]] = [
        (key.id, key.name, key.tenant, key.status, ", ".join(key.models), limits(key.limit) or "-", when(key.expires))
        for key in found
    ]
    any_at_all = "No keys yet; `trunkline keys create --name NAME` makes one."
    nothing = "No such keys." if tenant or labels or status else any_at_all
    rows(("id", "name", "tenant", "status", "models", "limits", "expires"), lines, nothing, spare=("expires",))
    _tell_unpeppered(settings, [key for key in found if not all(secret.pepper for secret in key.secrets)])


def _tell_unpeppered(settings: Settings, bare: list[Key]) -> None:
    """Say which keys a gateway with these settings refuses, or will, because they were hashed without a pepper."""
    if not settings.peppers or not bare:
        return
    versions, names = settings.pepper_versions(), ", ".join(key.id for key in bare[:10]) + ", ..." * (len(bare) > 10)
    fate = (
        f"accepted until {when(versions.until)}, and hashed anew when they are used"
        if versions.takes_unpeppered
        else "refused; TRUNKLINE_PEPPER_MIGRATE=DATE accepts them until then"
    )
    click.echo(f"Without a pepper, and {fate}: {names}", err=True)


@keys.command()
@click.argument("key_id")
@routing_option
@command
async def show(store: Store, settings: Settings, as_json: bool, key_id: str, routing: str | None) -> None:
    """Show one key, without its secrets; the limits that hold for it, and what is left of them."""
    record = await views.key(store, key_id)
    held = await key_held(store, holding(settings, routing), record)
    if as_json:
        click.echo(msgspec.json.encode(held))
        return
    _show(record, as_json)
    tell_standing(held.standing)


@keys.command()
@click.argument("key_id")
@click.option("--name", help="What the key is for.")
@click.option("--tenant", help="Who uses it.")
@_key_options
@click.option(
    "--clear",
    "clears",
    multiple=True,
    type=Parsed("FIELD", cleared),
    help="Remove a limit or another field: rpm, budget, budget:day, budget:day:tokens, outage:rpm, model-limit:ROUTE, "
    "label:NAME, source, body, body:set, expires, ... Repeatable.",
)
@command
async def update(store: Store, settings: Settings, as_json: bool, key_id: str, **options: Any) -> None:
    """Change a key, for the very next call: what is given is set, the rest stays; lists are replaced whole."""
    change = combined(collected(options.pop("clears")), _change(options))
    if not change:
        raise ValueError("nothing to change; see `trunkline keys update --help`")
    body = msgspec.convert(change, KeyChange)
    limited = [route for route, limit in (change.get("model_limits") or {}).items() if limit is not None]
    look_at_names(settings, options["routing"], limited, change.get("models", ()))
    _show(await change_key(store, registrar(store, settings), key_id, body, time.time()), as_json)


@keys.command()
@click.argument("key_id")
@command
async def revoke(store: Store, settings: Settings, as_json: bool, key_id: str) -> None:
    """End a key for good, from the very next call."""
    record = await registrar(store, settings).revoke(key_id)
    click.echo(msgspec.json.encode(views.shown(record)) if as_json else f"Key {key_id} ({record.name}) is revoked.")


@keys.command()
@click.argument("key_id")
@command
async def delete(store: Store, settings: Settings, as_json: bool, key_id: str) -> None:
    """Revoke a key from the very next call, and list it no more; what it has used stays in the ledger."""
    record = await registrar(store, settings).delete(key_id)
    click.echo(msgspec.json.encode(views.shown(record)) if as_json else f"Key {key_id} ({record.name}) is deleted.")


@keys.command()
@click.argument("key_id")
@click.option(
    "--overlap", type=Quantity(DURATION), default="24h", show_default=True, help="How long the old secret stays valid."
)
@command
async def rotate(store: Store, settings: Settings, as_json: bool, key_id: str, overlap: float) -> None:
    """Give a key a new secret and show it, once."""
    record, secret = await registrar(store, settings).rotate(key_id, overlap)
    _show_secret(record, secret, as_json)


def _change(options: dict[str, Any]) -> dict[str, Any]:
    """What the options say of a key, as the admin interface would read it; what was not given is not in it."""
    change: dict[str, Any] = {
        name: options[name]
        for name in ("name", "tenant", "default_route", "user_header", "priority")
        if options[name] is not None
    }
    change |= {name: list(options[name]) for name in ("models", "endpoints", "sources") if options[name]}
    change |= {name: collected(options[name]) for name in ("model_limits", "labels") if options[name]}
    if rules := body_rules(options):
        change["body"] = rules
    if limit := limit_change(options):
        change["limit"] = limit
    if options["expires"] is not None:
        change["expires"] = time.time() + options["expires"]
    return change


def _show(record: KeyRecord, as_json: bool) -> None:
    key = views.shown(record)
    if as_json:
        click.echo(msgspec.json.encode(key))
        return
    secrets = [
        f"pepper {each.pepper}" + (f", until {when(each.not_after)}" if each.not_after else "") for each in key.secrets
    ]
    told = {"secrets": "\n".join(secrets), "body": "\n".join(_rules(key.body or NO_RULES))}
    fields({name: getattr(key, name) for name in key.__struct_fields__} | told)


def _rules(body: BodyRules) -> Iterator[str]:
    """A line for each field that is ruled, as its option would have it."""
    yield from (f"deny {name}" for name in body.deny)
    for part in ("set", "default"):
        for name, value in getattr(body, part).items():
            yield f"{part} {name}={msgspec.json.encode(value).decode()}"
    if body.system_prompt:
        yield f"system_prompt {msgspec.json.encode(body.system_prompt).decode()}"


def _show_secret(record: KeyRecord, secret: str, as_json: bool) -> None:
    if as_json:
        click.echo(msgspec.json.encode(views.issued(record, secret)))
        return
    click.echo(secret)
    if sys.stdout.isatty():
        click.secho(f"Key {record.id} ({record.name}). The secret is shown this once and kept nowhere.", err=True)
