"""Targets that the gateway starts itself: their commands, ports and environments."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from backends.capabilities import Capabilities
from backends.llamacpp import LlamaCpp
from gateway.config import Table, parse_table
from gateway.process.launch import Launcher, free_port, inherited


def llamacpp(_: str) -> Capabilities:
    return Capabilities.of(LlamaCpp())


def table(launched: str) -> Table:
    text = f"routes: {{one: {{targets: [{{name: a/b, backend: llamacpp, launch: {launched}}}]}}}}"
    return parse_table(text, "t", {})[0]


def test_a_launched_target_gets_a_port_and_its_environment(tmp_path: Path) -> None:
    program = "import os, pathlib, sys, time; part = pathlib.Path(sys.argv[1], 'part')\n"
    program += "part.write_text(sys.argv[2] + ' ' + os.environ['WORD']); part.rename(part.with_name('got'))\n"
    program += "time.sleep(60)"
    argv = ["-S", "-c", program, str(tmp_path), "--port={port}"]
    quoted = ", ".join("'" + word.replace("'", "''").replace("\n", "\n\n") + "'" for word in [sys.executable, *argv])
    launcher = Launcher(table(f"{{argv: [{quoted}], environment: {{WORD: hello}}}}"), llamacpp)
    (url,) = launcher.urls.values()
    launcher.start()
    try:
        while not (tmp_path / "got").exists():
            time.sleep(0.005)
        got = (tmp_path / "got").read_text()
    finally:
        launcher.stop()
    assert got == f"--port={url.rpartition(':')[2]} hello"


@pytest.mark.parametrize(
    ("name", "is_inherited"),
    [
        ("PATH", True),
        ("CUDA_VISIBLE_DEVICES", True),
        ("HF_HOME", True),
        ("https_proxy", True),
        ("TRUNKLINE_PEPPERS", False),
        ("TRUNKLINE_REDIS_URL", False),
        ("OTHER_TARGETS_KEY", False),
        ("MY_PATH", False),
        ("AWS_SECRET_ACCESS_KEY", False),
    ],
)
def test_a_launched_target_gets_nothing_that_is_not_its_business(
    monkeypatch: pytest.MonkeyPatch, name: str, is_inherited: bool
) -> None:
    monkeypatch.setenv(name, "x")
    assert (inherited().get(name) == "x") is is_inherited


def test_a_launched_model_is_served_under_the_routes_name() -> None:
    launcher = Launcher(table("{model: embedded}"), llamacpp)
    (child,) = launcher._children
    launcher._folder.cleanup()
    assert "one" in child.argv and "backends.embedded" in child.argv


@pytest.mark.filterwarnings("error")
def test_a_launcher_that_was_never_started_stops() -> None:
    """As when serving fails before its children are needed."""
    Launcher(table("{model: embedded}"), llamacpp).stop()


def test_free_ports_are_free() -> None:
    assert 1024 <= free_port() < 65536
