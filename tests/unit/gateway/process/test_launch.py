"""Children of the gateway: real processes that die, come back, and end with all they started."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from backends.llamacpp import LlamaCpp
from gateway.config import Table, parse_table
from gateway.process import launch
from gateway.process.launch import Child, Launcher, free_port

BEGIN = "import os, pathlib, signal, subprocess, sys, time\nfolder = pathlib.Path(sys.argv[1])\n"
MARK = "(folder / f'{os.getpid()}.pid').touch()\n"
WAIT = "time.sleep(60)\n"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "BACKOFF_SECONDS", (0.05, 0.2))


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Callable[..., Child]]:
    children: list[Child] = []

    def make(program: str, **environment: str) -> Child:
        argv = [sys.executable, "-S", "-c", BEGIN + program, str(tmp_path)]
        children.append(Child("t", argv, environment, tmp_path / "output.log"))
        children[-1].start()
        return children[-1]

    yield make
    for each in children:
        each.stop()


def until(found: Callable[[], Any], seconds: float = 10) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.005)
    return value


def pids(folder: Path) -> list[int]:
    return [int(file.stem) for file in sorted(folder.glob("*.pid"), key=lambda file: file.stat().st_mtime_ns)]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_child_runs_and_stops(child: Callable[..., Child], tmp_path: Path) -> None:
    each = child(MARK + WAIT)
    (pid,) = until(lambda: pids(tmp_path))
    started = time.monotonic()
    each.stop()
    assert not alive(pid) and time.monotonic() - started < 5
    time.sleep(0.2)
    assert pids(tmp_path) == [pid], "what was stopped is not started again"


def test_a_child_that_dies_is_started_again(child: Callable[..., Child], tmp_path: Path) -> None:
    child(MARK + WAIT)
    (first,) = until(lambda: pids(tmp_path))
    os.kill(first, signal.SIGKILL)
    _, second = until(lambda: len(pids(tmp_path)) == 2 and pids(tmp_path))
    assert alive(second) and second != first


def test_pauses_grow_between_restarts(child: Callable[..., Child], tmp_path: Path) -> None:
    child("print(time.time_ns(), flush=True); sys.exit(3)\n")
    read = (tmp_path / "output.log").read_text
    until(lambda: (tmp_path / "output.log").exists() and len(read().split()) >= 5)
    times = [int(line) / 1e9 for line in read().split()]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    for gap, least in zip(gaps, (0.05, 0.1, 0.2, 0.2), strict=False):
        assert gap >= least


def test_a_death_is_logged_with_its_reason_and_last_words(
    child: Callable[..., Child], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        child("print('out of memory', flush=True); sys.exit(7)\n")
        until(lambda: caplog.text)
    assert "target t ended with code 7" in caplog.text and "out of memory" in caplog.text


def test_a_command_that_is_not_there_is_logged_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    each = Child("t", ["/no/such/program"], {}, tmp_path / "output.log")
    with caplog.at_level(logging.ERROR):
        each.start()
        until(lambda: caplog.text.count("cannot be started") >= 2)
        each.stop()


def test_stop_ends_what_the_child_started(child: Callable[..., Child], tmp_path: Path) -> None:
    spawn = f"subprocess.Popen([sys.executable, '-S', '-c', {BEGIN + MARK + WAIT!r}, str(folder)])\n"
    each = child(MARK + spawn + WAIT)
    both = until(lambda: len(pids(tmp_path)) == 2 and pids(tmp_path))
    each.stop()
    until(lambda: not any(map(alive, both)))


def test_stop_insists(child: Callable[..., Child], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "STOP_SECONDS", 0.3)
    each = child("signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + MARK + WAIT)
    (pid,) = until(lambda: pids(tmp_path))
    started = time.monotonic()
    each.stop()
    assert not alive(pid) and 0.3 <= time.monotonic() - started < 5


def test_kill_does_not_wait_and_ends_a_stop_that_does(child: Callable[..., Child], tmp_path: Path) -> None:
    each = child("signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + MARK + WAIT)
    (pid,) = until(lambda: pids(tmp_path))
    stopping = threading.Thread(target=each.stop)
    started = time.monotonic()
    stopping.start()
    until(each._stopping.is_set)
    each.kill()
    stopping.join(8)
    assert not stopping.is_alive() and time.monotonic() - started < 8 and not alive(pid)


def test_what_a_dead_child_left_behind_ends_too(child: Callable[..., Child], tmp_path: Path) -> None:
    """A server whose front dies leaves workers that hold the port and the memory the next one needs."""
    worker = BEGIN + MARK + WAIT
    spawn = f"subprocess.Popen([sys.executable, '-S', '-c', {worker!r}, str(folder)])\n"
    once = f"if not list(folder.glob('*.pid')):\n    {spawn}    time.sleep(1)\n    sys.exit(1)\n"
    each = child(once + MARK + WAIT)
    left, _ = until(lambda: len(pids(tmp_path)) == 2 and pids(tmp_path))
    try:
        each.stop()
        until(lambda: not alive(left), seconds=2)
    finally:
        if alive(left):
            os.kill(left, signal.SIGKILL)


def test_stop_while_waiting_to_start_again_is_quick(
    child: Callable[..., Child], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "BACKOFF_SECONDS", (30.0, 30.0))
    each = child(MARK)
    (pid,) = until(lambda: pids(tmp_path))
    until(lambda: not alive(pid))
    started = time.monotonic()
    each.stop()
    assert time.monotonic() - started < 5 and not each._thread.is_alive()


@pytest.mark.skipif(sys.platform != "linux", reason="parent-death signals are Linux's")
def test_children_of_a_gateway_that_is_killed_end(tmp_path: Path) -> None:
    argv = [sys.executable, "-S", "-c", BEGIN + MARK + WAIT, str(tmp_path)]
    program = "import pathlib, time; from gateway.process.launch import Child\n"
    program += f"out = pathlib.Path({str(tmp_path / 'out')!r})\n"
    program += f"Child('t', {argv!r}, {{}}, out).start(); time.sleep(60)"
    gateway = subprocess.Popen([sys.executable, "-c", program])
    try:
        (pid,) = until(lambda: pids(tmp_path))
    finally:
        gateway.kill()
        gateway.wait()
    until(lambda: not alive(pid))


def table(launched: str) -> Table:
    text = f"routes: {{one: {{targets: [{{name: a/b, backend: llamacpp, launch: {launched}}}]}}}}"
    return parse_table(text, "t", {})[0]


def test_a_launched_target_gets_a_port_and_its_environment(tmp_path: Path) -> None:
    program = BEGIN + "(folder / 'got').write_text(sys.argv[2] + ' ' + os.environ['WORD'])\ntime.sleep(60)"
    argv = ["-S", "-c", program, str(tmp_path), "--port={port}"]
    quoted = ", ".join("'" + word.replace("'", "''").replace("\n", "\n\n") + "'" for word in [sys.executable, *argv])
    launcher = Launcher(table(f"{{argv: [{quoted}], environment: {{WORD: hello}}}}"), lambda _: LlamaCpp())
    (url,) = launcher.urls.values()
    launcher.start()
    try:
        got = until(lambda: (tmp_path / "got").exists() and (tmp_path / "got").read_text())
    finally:
        launcher.stop()
    assert got == f"--port={url.rpartition(':')[2]} hello"


def test_a_launched_model_is_served_under_the_routes_name() -> None:
    launcher = Launcher(table("{model: embedded}"), lambda _: LlamaCpp())
    (child,) = launcher._children
    launcher._folder.cleanup()
    assert "one" in child._argv and "backends.embedded" in child._argv


@pytest.mark.filterwarnings("error")
def test_a_launcher_that_was_never_started_stops() -> None:
    """As when serving fails before its children are needed."""
    Launcher(table("{model: embedded}"), lambda _: LlamaCpp()).stop()


def test_free_ports_are_free() -> None:
    assert 1024 <= free_port() < 65536
