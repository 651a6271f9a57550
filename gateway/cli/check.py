"""`trunkline check` and `trunkline schema`: the routing table, examined without starting anything."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
import msgspec

from backends import registry
from gateway.batches.storage import examine_storage
from gateway.cli.asked import ask_with_progress, tell, worst
from gateway.cli.serve import cache_trouble, one_folder
from gateway.config import Mistake, Mistakes, Settings, Table, load_table, table_schema
from gateway.config.caching import without_cache
from gateway.config.reader import hash_of
from gateway.store import shown


@click.command()
@click.argument("file", default="routing.yaml", type=click.Path(dir_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--probe", is_flag=True, help="Ask each target, too: whether it serves, its models, context, version.")
def check(file: str, as_json: bool, probe: bool) -> None:
    """Say all that is wrong with the routing table FILE (default: routing.yaml), then run its tests.

    The exit status is 1 if the table cannot be served, with --probe also if a target does not serve.
    """
    table, errors = None, []
    try:
        table, warnings = load_table(Path(file), look_up=True)
    except Mistakes as found:
        errors, warnings = found.found, []
    asked = ask_with_progress(table, _readable()) if probe and table is not None else []
    failed = worst(each.verdict for each in asked) == "wrong"
    if as_json:
        told: dict[str, Any] = {"ok": not errors and not failed, "mistakes": msgspec.to_builtins([*errors, *warnings])}
        if table is not None:
            told["config_hash"] = hash_of(Path(file).read_bytes())
        if probe:
            told["targets"] = msgspec.to_builtins(asked)
        click.echo(json.dumps(told))
        sys.exit(bool(errors) or failed)
    for mistake in (*errors, *warnings):
        _show(mistake)
    if table is None:
        click.secho(f"{file}: {len(errors)} mistake{'s' * (len(errors) > 1)}", fg="red", err=True)
        sys.exit(1)
    targets = list(table.targets())
    click.echo(f"{file}: ok ({len(table.routes)} routes, {len(targets)} targets, {len(table.tests)} tests passed)")
    click.echo(
        f"  hash {hash_of(Path(file).read_bytes())}: as metrics, /ready and the header x-trunkline-config tell it"
    )
    _look_at_files()
    _look_at_cache(table)
    for name in sorted({target.backend for _, _, target in targets}):
        point = registry.installed()[name]
        origin = f"{point.dist.name} {point.dist.version}" if point.dist else "?"
        click.echo(f"  backend {name}: {point.value} from {origin}")
    for each in asked:
        tell(each.verdict, each.told, each.next)
    sys.exit(failed)


@click.command()
def schema() -> None:
    """Print the routing table's JSON Schema, for editors that complete and check YAML."""
    click.echo(json.dumps(table_schema(), indent=2))


def _readable() -> Settings:
    try:
        return Settings.read()
    except ValueError as error:
        raise click.ClickException(str(error)) from None


def _look_at_files() -> None:
    """Say where files are stored, and what is to be heeded there."""
    try:
        settings = Settings.read()
        if not settings.files:
            return
        examine_storage(settings.files)
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"  files and batches: {settings.files}")
    if told := one_folder(settings):
        click.secho(told, fg="yellow", err=True)


def _look_at_cache(table: Table) -> None:
    """Say where answers are kept, and what is to be heeded there."""
    try:
        settings = Settings.read()
        told = cache_trouble(settings)
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    if settings.cache_url:
        click.echo(f"  response cache: {shown(settings.cache_url)}")
    for warning in filter(None, (told, *without_cache(table, settings.cache_url))):
        click.secho(warning, fg="yellow", err=True)


def _show(mistake: Mistake) -> None:
    click.secho(str(mistake), fg="yellow" if mistake.warning else None, err=True)
