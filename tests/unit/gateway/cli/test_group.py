"""What is typed wrongly: one line, and what may have been meant."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from click.testing import CliRunner, Result

from gateway import __version__
from gateway.cli import COMMANDS, cli


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (["kyes"], "'kyes'; did you mean 'keys'?"),
        (["keys", "shwo"], "'shwo'; did you mean 'show'?"),
        (["targets", "lsit"], "did you mean 'list'?"),
        (["xyz"], "commands: demo, serve,"),
        (["check", "--porbe"], "Did you mean '--probe'?"),
        (["keys", "create"], "Missing option '--name'"),
        (["keys", "create", "--name", "x", "--expires", "5"], "expected a duration such as 2s"),
        (["keys", "create", "--name", "x", "--budget", "MONTH:MONEY=5"], "PERIOD one of day, week, month"),
        (["completion", "tcsh"], "'tcsh' is not one of"),
    ],
)
def test_one_line_an_error(run: Callable[..., Result], typed: list[str], told: str) -> None:
    result = run(*typed)
    assert result.exit_code == 2 and result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ") and told in line and "--help tells more" in line


def test_the_version() -> None:
    for option in ("-V", "--version"):
        result = CliRunner().invoke(cli, [option])
        assert result.exit_code == 0 and __version__ in result.stdout


def test_help_is_no_error() -> None:
    result = CliRunner().invoke(cli, ["--help"])
    assert result.exit_code == 0
    assert all(command in result.stdout for command in COMMANDS)


@pytest.mark.parametrize(
    "shown", ["--rpm 200k", "--budget day:tokens=2M", "--expires 2s", "--model-limit ROUTE:rpm=10"]
)
def test_what_an_option_takes_is_shown_as_it_is_typed(run: Callable[..., Result], shown: str) -> None:
    assert shown in run("keys", "create", "--help").stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(run: Callable[..., Result], shell: str) -> None:
    script = run("completion", shell).stdout
    assert "_TRUNKLINE_COMPLETE" in script and "trunkline" in script


def test_what_a_shell_is_told() -> None:
    environment = {"_TRUNKLINE_COMPLETE": "bash_complete", "COMP_WORDS": "trunkline keys re", "COMP_CWORD": "2"}
    result = CliRunner().invoke(cli, [], prog_name="trunkline", env=environment)
    assert result.stdout.split() == ["plain,revoke"]
