"""What `trunkline serve` starts beside its workers."""

from __future__ import annotations

import os
import sys

import pytest

from gateway.cli.serve import ADMIN_COMMAND, admin_listener
from gateway.config import Settings


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
