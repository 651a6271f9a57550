"""The command `trunkline`, whose subcommands are modules: each is imported only when it runs."""

from __future__ import annotations

import importlib
import sys
from functools import partial
from typing import Any

import click

from gateway import __version__
from gateway.cli.suggesting import Group

COMMANDS = {
    "demo": "gateway.cli.demo:demo",
    "serve": "gateway.cli.serve:serve",
    "check": "gateway.cli.check:check",
    "init": "gateway.cli.init:init",
    "import": "gateway.cli.imports:import_",
    "doctor": "gateway.cli.doctor:doctor",
    "plan": "gateway.cli.plan:plan",
    "schema": "gateway.cli.check:schema",
    "explain": "gateway.cli.explain:explain",
    "simulate": "gateway.cli.simulate:simulate",
    "completion": "gateway.cli.completion:completion",
    "fake-backend": "gateway.cli.fake_backend:fake_backend",
    "fake-link": "gateway.cli.fake_link:fake_link",
    "keys": "gateway.cli.keys:keys",
    "usage": "gateway.cli.usage:usage",
    "tenants": "gateway.cli.tenants:tenants_",
    "batches": "gateway.cli.batches:batches",
    "targets": "gateway.cli.targets:targets_",
    "admin": "gateway.cli.admin:admin",
}


class _Lazy(Group):
    """A group whose commands are imported when they are used: serving needs no tables, tables need no server."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run it; what is typed wrongly is said in one line. Ends the process, unless told otherwise."""
        run = partial(super().main, *args, standalone_mode=False, **extra)
        if not standalone_mode:
            return run()
        try:
            code: Any = run()
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            sys.exit(error.exit_code)
        except click.UsageError as error:
            help_ = f" ({error.ctx.command_path} --help tells more)" if error.ctx is not None else ""
            click.echo(f"Error: {error.format_message().rstrip('.')}{help_}", err=True)
            sys.exit(error.exit_code)
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except click.Abort:
            click.echo("Aborted!", err=True)
            sys.exit(1)
        sys.exit(code if isinstance(code, int) else 0)


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name="trunkline")
def cli(**_: Any) -> None:
    """An LLM routing gateway for model servers you run yourself."""
