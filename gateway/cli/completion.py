"""`trunkline completion`: what a shell needs to complete commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

VARIABLE = "_TRUNKLINE_COMPLETE"
"""By which click is asked."""


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script for a shell.

    \b
    bash: trunkline completion bash > ~/.local/share/bash-completion/completions/trunkline
    zsh:  trunkline completion zsh > "${fpath[1]}/_trunkline"
    fish: trunkline completion fish > ~/.config/fish/completions/trunkline.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(ctx.find_root().command, {}, "trunkline", VARIABLE).source_template % _words())


def _words() -> dict[str, str]:
    return {"complete_func": "_trunkline_completion", "complete_var": VARIABLE, "prog_name": "trunkline"}
