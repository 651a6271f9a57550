"""`trunkline keys`: create, list, show, rotate and revoke virtual keys, in Redis or in the state file."""

from __future__ import annotations

import asyncio
import functools
import json
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table

from gateway.config import Settings
from gateway.config.units import COUNT, DURATION, Unit
from gateway.core.clock import SystemClock
from gateway.core.types import KeyRecord, Limit
from gateway.keys import Registrar
from gateway.store import Store, StoreDown, open_store

CLI_TIMEOUT = 5.0
"""Seconds; a person waits longer for Redis than a call does."""


class Quantity(click.ParamType[Any, Any]):
    """An option such as `30d` or `10k`."""

    def __init__(self, unit: Unit) -> None:
        self._unit = unit
        self.name = unit.example

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self._unit.parse(value)
        except ValueError as error:
            self.fail(f"{value!r}: {error}", param, ctx)


@click.group()
def keys() -> None:
    """Create, list, show, rotate and revoke virtual keys."""


def _command(work: Callable[..., Awaitable[Any]]) -> Callable[..., None]:
    """Run `work(store, settings, **options)` with an open store, and turn its failures into messages."""

    @click.option("--redis-url", help="Where the keys live; default: TRUNKLINE_REDIS_URL, else the state file.")
    @click.option("--state", type=click.Path(dir_okay=False), help="The key file of a gateway without Redis.")
    @click.option("--json", "as_json", is_flag=True, help="Print JSON.")
    @functools.wraps(work)
    def run(redis_url: str | None, state: str | None, as_json: bool, **options: Any) -> None:
        async def session() -> Any:
            settings = Settings.read(redis_url=redis_url, state=state)
            store = open_store(settings.redis_url, settings.state_path, CLI_TIMEOUT)
            await store.open()
            try:
                return await work(store, settings, as_json, **options)
            finally:
                await store.close()

        try:
            asyncio.run(session())
        except StoreDown as error:
            raise click.ClickException(f"the key store cannot be used: {error}") from None
        except KeyError as error:
            raise click.ClickException(f"there is no key {error.args[0]!r}; `trunkline keys list` shows all") from None
        except (ValueError, OSError) as error:
            raise click.ClickException(str(error)) from None

    return run


def _registrar(store: Store, settings: Settings) -> Registrar:
    return Registrar(store, settings.pepper_versions(), SystemClock())


@keys.command()
@click.option("--name", required=True, help="What the key is for; shown in lists.")
@click.option("--tenant", default="default", show_default=True, help="Who uses it.")
@click.option(
    "--model", "models", multiple=True, help="A model it may use; * stands for any text. Repeatable. [default: *]"
)
@click.option("--rpm", type=Quantity(COUNT), help="Requests a minute. [default: the table's]")
@click.option("--concurrency", type=Quantity(COUNT), help="Calls at the same time. [default: the table's]")
@click.option("--expires", type=Quantity(DURATION), help="How long it is valid, such as 30d. [default: for ever]")
@_command
async def create(store: Store, settings: Settings, as_json: bool, **options: Any) -> None:
    """Create a key and show its secret, once."""
    limit = Limit(rpm=options["rpm"], concurrency=options["concurrency"])
    if any(value is not None and value < 1 for value in (limit.rpm, limit.concurrency)):
        raise ValueError("limits must be at least 1")
    record, secret = await _registrar(store, settings).create(
        options["name"],
        tenant=options["tenant"],
        models=options["models"] or ("*",),
        limit=limit,
        lifetime=options["expires"],
    )
    _show_secret(record, secret, as_json)


@keys.command(name="list")
@_command
async def list_keys(store: Store, settings: Settings, as_json: bool) -> None:
    """List all keys, the oldest first."""
    records = await store.keys()
    if as_json:
        click.echo(json.dumps([_public(record) for record in records]))
        return
    table = Table("id", "name", "tenant", "status", "models", "rpm", "concurrency", "created", box=None, pad_edge=False)
    for record in records:
        shown = _public(record)
        limit = shown["limit"]
        table.add_row(
            record.id,
            record.name,
            record.tenant,
            shown["status"],
            ", ".join(record.models),
            str(limit.get("rpm", "-")),
            str(limit.get("concurrency", "-")),
            _when(record.created),
        )
    _console().print(table if records else "No keys yet; `trunkline keys create --name NAME` makes one.")


@keys.command()
@click.argument("key_id")
@_command
async def show(store: Store, settings: Settings, as_json: bool, key_id: str) -> None:
    """Show one key, without its secrets."""
    record = await store.key(key_id)
    if record is None:
        raise KeyError(key_id)
    shown = _public(record)
    if as_json:
        click.echo(json.dumps(shown))
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in shown.items():
        table.add_row(name, _when(value) if isinstance(value, float) else json.dumps(value).strip('"'))
    _console().print(table)


@keys.command()
@click.argument("key_id")
@_command
async def revoke(store: Store, settings: Settings, as_json: bool, key_id: str) -> None:
    """End a key for good, from the very next call."""
    record = await _registrar(store, settings).revoke(key_id)
    click.echo(json.dumps(_public(record)) if as_json else f"Key {key_id} ({record.name}) is revoked.")


@keys.command()
@click.argument("key_id")
@click.option(
    "--overlap", type=Quantity(DURATION), default="24h", show_default=True, help="How long the old secret stays valid."
)
@_command
async def rotate(store: Store, settings: Settings, as_json: bool, key_id: str, overlap: float) -> None:
    """Give a key a new secret and show it, once."""
    record, secret = await _registrar(store, settings).rotate(key_id, overlap)
    _show_secret(record, secret, as_json)


def _show_secret(record: KeyRecord, secret: str, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({**_public(record), "secret": secret}))
        return
    click.echo(secret)
    if sys.stdout.isatty():
        click.secho(f"Key {record.id} ({record.name}). The secret is shown this once and kept nowhere.", err=True)


def _public(record: KeyRecord) -> dict[str, Any]:
    """The record without digests, with its status in a word."""
    shown: dict[str, Any] = msgspec.to_builtins(record)
    now = time.time()
    if record.revoked is not None:
        status = "revoked"
    elif record.expires is not None and record.expires <= now:
        status = "expired"
    else:
        status = "active"
    secrets = [{"not_after": secret.not_after, "pepper": secret.pepper} for secret in record.secrets]
    defaults = {"tenant": record.tenant, "models": list(record.models), "version": record.version}
    return {**shown, **defaults, "limit": shown.get("limit", {}), "secrets": secrets, "status": status}


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def _console() -> Console:
    # A pipe has no width: scripts get whole lines, people get the terminal's.
    return Console(width=None if sys.stdout.isatty() else 200, highlight=False)
