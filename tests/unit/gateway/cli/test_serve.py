"""What `trunkline serve` starts beside its workers."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from harness.redis_server import free_port

from gateway.cli.serve import ADMIN_COMMAND, admin_listener, serve
from gateway.config import Settings
from gateway.process.launch import Launcher

TABLE = "routes: {m: {targets: [{name: a, backend: openai, url: 'http://127.0.0.1:9'}]}}"


@pytest.fixture
def signals() -> Iterator[None]:
    """What the command does with signals ends with the test."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_the_admin_listener_gets_the_settings_and_counts_in_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stderr:
        """pytest's own has no file behind it."""

        def fileno(self) -> int:
            return 2

    monkeypatch.setattr(sys, "stderr", Stderr())
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "/somewhere")
    listener = admin_listener(Settings.read(admin_port=1))
    assert listener.argv == list(ADMIN_COMMAND)
    environment = listener._environment
    assert "PROMETHEUS_MULTIPROC_DIR" not in environment
    assert environment["TRUNKLINE_ADMIN_PORT"] == "1" and environment["PATH"] == os.environ["PATH"]


@pytest.mark.usefixtures("signals")
def test_a_gateway_that_is_told_to_end_while_it_starts_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped, left, stop = list[Launcher](), tmp_path / "left", Launcher.stop
    left.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(left))
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setattr(Launcher, "stop", lambda self: (stopped.append(self), stop(self)))
    monkeypatch.setattr(Launcher, "start", lambda _: os.kill(os.getpid(), signal.SIGTERM))
    (tmp_path / "routing.yaml").write_text(TABLE)
    words = [str(tmp_path / "routing.yaml"), "--state", str(tmp_path / "keys.db"), "--port", str(free_port())]
    done = CliRunner().invoke(serve, words)
    assert done.exit_code == 0, done.output
    assert len(stopped) == 1, "what was launched is stopped"
    assert list(left.iterdir()) == []
