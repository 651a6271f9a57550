"""Groups of commands that say which one may have been meant."""

from __future__ import annotations

import difflib

import click


class Group(click.Group):
    """A group that, for a command it does not have, names those that are like it, else all."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            if args and not args[0].startswith("-"):
                names = self.list_commands(ctx)
                near = difflib.get_close_matches(args[0], names)
                told = f"did you mean {' or '.join(map(repr, near))}?" if near else f"commands: {', '.join(names)}"
                raise click.UsageError(f"No such command {args[0]!r}; {told}", ctx) from None
            raise error
