"""`trunkline import`: routing tables out of other gateways' files."""

from __future__ import annotations

from pathlib import Path

import click
import yaml

from gateway.cli.init import write_table
from gateway.cli.litellm import carried
from gateway.cli.suggesting import Group

HEAD = "# Written by `trunkline import {kind} {name}`; `trunkline check --probe` asks its targets.\n"


@click.group(cls=Group, name="import")
def import_() -> None:
    """Make a routing table out of another gateway's file."""


@import_.command()
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("--output", default="routing.yaml", show_default=True, help="The file to write; - prints it.")
@click.option("--force", is_flag=True, help="Write over a file that is there.")
def litellm(file: str, output: str, force: bool) -> None:
    """Carry models, router settings and fallbacks of a LiteLLM config.yaml over.

    What cannot be carried is listed on standard error, a line each. Secrets are never written: the table refers to
    environment variables.
    """
    if output != "-" and Path(output).exists() and not force:
        raise click.ClickException(f"{output} is there already: --force writes over it, --output names another file")
    try:
        config = yaml.safe_load(Path(file).read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise click.ClickException(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise click.ClickException(f"{file} is not valid YAML: {' '.join(str(error).split())}") from None
    try:
        table, left = carried(config)
    except ValueError as error:
        raise click.ClickException(f"{file}: {error}") from None
    text = HEAD.format(kind="litellm", name=Path(file).name) + yaml.safe_dump(table, sort_keys=False, width=1000)
    write_table(text, output, "what the file says")
    for told in left:
        click.secho(f"Not carried: {told}", fg="yellow", err=True)
