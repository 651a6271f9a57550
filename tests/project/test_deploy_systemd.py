"""The systemd unit: what it runs exists, it waits long enough, and systemd takes it."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from gateway.cli import COMMANDS
from gateway.config import Settings

UNIT = Path(__file__).parents[2] / "deploy/systemd/trunkline.service"
LAST, LAUNCHED = 8, 12
"""Seconds for what is left of a worker after its grace, and for what the table has launched."""


def said(name: str) -> list[str]:
    lines = (line.partition("=") for line in UNIT.read_text().splitlines() if line[:1] not in ("#", "[", ""))
    return [value for key, _, value in lines if key == name]


def test_the_command_is_ours_and_its_settings_can_be_used() -> None:
    ((program, command, table),) = [line.split() for line in said("ExecStart")]
    assert (Path(program).name, Path(table).name) == ("trunkline", "routing.yaml")
    assert command in COMMANDS
    environment = dict(word.split("=", 1) for line in said("Environment") for word in shlex.split(line))
    settings = Settings.read({name: value.replace("%S", "/var/lib") for name, value in environment.items()})
    assert str(settings.state_path.parent) == f"/var/lib/{said('StateDirectory')[0]}"


def test_it_is_as_patient_as_the_drain_takes() -> None:
    settings = Settings()
    assert int(said("TimeoutStopSec")[0]) > settings.drain_accept + settings.grace + LAST + LAUNCHED
    assert (said("KillMode"), said("KillSignal")) == (["mixed"], ["SIGTERM"])
    assert said("Type") == ["exec"], "the gateway does not tell systemd when it is ready"


@pytest.mark.parametrize(
    "words", [["verify"], ["security", "--offline=true", "--threshold=20", "--no-pager"]], ids=" ".join
)
def test_systemd_takes_the_unit_and_finds_little_exposed(words: list[str], tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze on the PATH")
    unit = tmp_path / UNIT.name
    program = said("ExecStart")[0].split()[0]
    unit.write_text(UNIT.read_text().replace(program, "/bin/true"))  # what is not installed here would be a mistake
    done = subprocess.run(["systemd-analyze", *words, unit], capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "trunkline" not in done.stderr, done.stderr
