"""Commands run in this process, on a state file of the test's own."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gateway.cli import cli


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs `trunkline ARGUMENTS`."""
    monkeypatch.setenv("TRUNKLINE_STATE", str(tmp_path / "keys.json"))
    if "TRUNKLINE_ROUTING" not in os.environ:
        monkeypatch.setenv("TRUNKLINE_ROUTING", str(tmp_path / "routing.yaml"))
    monkeypatch.delenv("TRUNKLINE_REDIS_URL", raising=False)

    def invoke(*arguments: str) -> Result:
        result = CliRunner().invoke(cli, arguments)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return invoke


@pytest.fixture
def said(run: Callable[..., Result]) -> Callable[..., Any]:
    """What `trunkline ARGUMENTS --json` says."""

    def invoke(*arguments: str) -> Any:
        result = run(*arguments, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    return invoke


@pytest.fixture
def refused(run: Callable[..., Result]) -> Callable[..., str]:
    """The message with which a command ends that cannot work."""

    def invoke(*arguments: str) -> str:
        result = run(*arguments)
        assert result.exit_code in (1, 2), result.output
        return result.stderr

    return invoke
