"""The command line: what an operator types."""

from gateway.cli.group import COMMANDS, cli

__all__ = ["COMMANDS", "cli"]
