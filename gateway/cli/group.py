"""The command `trunkline`, whose subcommands are modules: each is imported only when it runs."""

from __future__ import annotations

import importlib
from typing import Any

import click

from gateway import __version__

COMMANDS = {
    "demo": "gateway.cli.demo:demo",
    "serve": "gateway.cli.serve:serve",
    "check": "gateway.cli.check:check",
    "doctor": "gateway.cli.doctor:doctor",
    "plan": "gateway.cli.plan:plan",
    "schema": "gateway.cli.check:schema",
    "explain": "gateway.cli.explain:explain",
    "simulate": "gateway.cli.simulate:simulate",
    "fake-backend": "gateway.cli.fake_backend:fake_backend",
    "fake-link": "gateway.cli.fake_link:fake_link",
    "keys": "gateway.cli.keys:keys",
    "usage": "gateway.cli.usage:usage",
    "tenants": "gateway.cli.tenants:tenants_",
    "batches": "gateway.cli.batches:batches",
    "targets": "gateway.cli.targets:targets_",
    "admin": "gateway.cli.admin:admin",
}


class _Lazy(click.Group):
    """A group whose commands are imported when they are used: serving needs no tables, tables need no server."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="trunkline")
def cli(**_: Any) -> None:
    """An LLM routing gateway for model servers you run yourself."""
