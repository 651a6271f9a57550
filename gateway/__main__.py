"""The `trunkline` command."""

from gateway.cli import cli


def main() -> None:
    """Run the command line."""
    cli(prog_name="trunkline")


if __name__ == "__main__":
    main()
