"""`trunkline batches`: how far the batches of all tenants have come, and cancelling them."""

from __future__ import annotations

import time

import click
import msgspec

from gateway.batches.submissions import cancel as cancel_batch
from gateway.cli.session import command, when
from gateway.cli.suggesting import Group
from gateway.cli.tables import fields, rows
from gateway.config import Settings
from gateway.core.batches import Batch
from gateway.core.errors import GatewayError
from gateway.store import Store

COLUMNS = ("batch", "tenant", "status", "lines", "answered", "failed", "created", "endpoint")
_TIMES = ("created", "deadline", "expires")


@click.group(cls=Group)
def batches() -> None:
    """List, show and cancel batches, which tenants leave at /v1/batches."""


@batches.command(name="list")
@click.option("--tenant", help="Only this tenant's.")
@click.option("--all", "ended_too", is_flag=True, help="Also those that have ended.")
@command
async def list_batches(store: Store, settings: Settings, as_json: bool, tenant: str | None, ended_too: bool) -> None:
    """List the batches that have not ended, newest first, and how many of their lines have an answer."""
    found = [batch for batch in await store.batches.batches(tenant) if ended_too or not batch.ended]
    if as_json:
        click.echo(msgspec.json.encode(found))
        return
    rows(COLUMNS, [_row(batch) for batch in found], "No batches.")


@batches.command()
@click.argument("batch_id")
@command
async def show(store: Store, settings: Settings, as_json: bool, batch_id: str) -> None:
    """Show one batch."""
    _show(await _find(store, batch_id), as_json)


@batches.command()
@click.argument("batch_id")
@command
async def cancel(store: Store, settings: Settings, as_json: bool, batch_id: str) -> None:
    """Have no more of a batch asked; what was answered goes into its results."""
    try:
        batch = await cancel_batch(store.batches, await _find(store, batch_id), time.time())
    except GatewayError as error:
        raise click.ClickException(error.message) from None
    _show(batch, as_json)


async def _find(store: Store, batch_id: str) -> Batch:
    found = {batch.id: batch for batch in await store.batches.batches()}
    return found[batch_id]


def _show(batch: Batch, as_json: bool) -> None:
    if as_json:
        click.echo(msgspec.json.encode(batch))
        return
    shown = msgspec.to_builtins(batch)
    times = {name: when(value) for name, value in shown.items() if name in _TIMES or name.endswith("_at")}
    errors = [f"{error.line or '-'}: {error.message}" for error in batch.errors]
    fields({**shown, **times, "errors": "\n".join(errors), "completed": batch.completed, "failed": batch.failed})


def _row(batch: Batch) -> tuple[object, ...]:
    return (
        batch.id,
        batch.tenant,
        batch.status,
        batch.total,
        batch.completed + batch.failed,
        batch.failed,
        when(batch.created),
        batch.endpoint,
    )
