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

from gateway.process import child as module
from gateway.process.child import Child

BEGIN = "import os, pathlib, signal, subprocess, sys, time\nfolder = pathlib.Path(sys.argv[1])\n"
MARK = "(folder / f'{os.getpid()}.pid').touch()\n"
WAIT = "time.sleep(60)\n"
STOPS = module.STOP_SECONDS / 2
"""A stop that is over by then has not waited for its own patience to end."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_SECONDS", (0.05, 0.2))


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Callable[..., Child]]:
    children: list[Child] = []

    def make(program: str, output: Path | int | None = None) -> Child:
        argv = [sys.executable, "-S", "-c", BEGIN + program, str(tmp_path)]
        children.append(Child("target t", argv, os.environ, output or tmp_path / "output.log"))
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
    each.stop()
    assert not alive(pid)
    assert not each._thread.is_alive(), "what was stopped is not started again"


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
    each = Child("target t", ["/no/such/program"], {}, tmp_path / "output.log")
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
    monkeypatch.setattr(module, "STOP_SECONDS", 0.3)
    each = child("signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + MARK + WAIT)
    (pid,) = until(lambda: pids(tmp_path))
    each.stop()
    assert not alive(pid)


def test_kill_does_not_wait_and_ends_a_stop_that_does(child: Callable[..., Child], tmp_path: Path) -> None:
    each = child("signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + MARK + WAIT)
    (pid,) = until(lambda: pids(tmp_path))
    stopping = threading.Thread(target=each.stop)
    stopping.start()
    until(each._stopping.is_set)
    each.kill()
    stopping.join(STOPS)
    assert not stopping.is_alive() and not alive(pid)


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
    monkeypatch.setattr(module, "PAUSE_SECONDS", (30.0, 30.0))
    each = child(MARK)
    (pid,) = until(lambda: pids(tmp_path))
    until(lambda: not alive(pid))
    stopping = threading.Thread(target=each.stop)
    stopping.start()
    stopping.join(STOPS)
    assert not stopping.is_alive() and not each._thread.is_alive()


@pytest.mark.skipif(sys.platform != "linux", reason="parent-death signals are Linux's")
def test_children_of_a_gateway_that_is_killed_end(tmp_path: Path) -> None:
    argv = [sys.executable, "-S", "-c", BEGIN + MARK + WAIT, str(tmp_path)]
    program = "import pathlib, time; from gateway.process.child import Child\n"
    program += f"out = pathlib.Path({str(tmp_path / 'out')!r})\n"
    program += f"Child('t', {argv!r}, {{}}, out).start(); time.sleep(60)"
    gateway = subprocess.Popen([sys.executable, "-c", program])
    try:
        (pid,) = until(lambda: pids(tmp_path))
    finally:
        gateway.kill()
        gateway.wait()
    until(lambda: not alive(pid))


def test_output_may_go_to_an_open_file(child: Callable[..., Child]) -> None:
    read, write = os.pipe()
    try:
        child("print('to our stdout', flush=True); print('to our stderr', file=sys.stderr, flush=True)\n" + WAIT, write)
        with open(read, closefd=False) as lines:
            assert [lines.readline(), lines.readline()] == ["to our stdout\n", "to our stderr\n"]
    finally:
        os.close(read)
        os.close(write)


def test_the_first_start_is_made_by_the_caller(child: Callable[..., Child]) -> None:
    """A fork of the caller's, made at the same time, would keep another thread's start waiting."""
    each = child(WAIT)
    assert each._process is not None


def test_what_was_never_started_stops(tmp_path: Path) -> None:
    Child("target t", [sys.executable, "-c", ""], {}, tmp_path / "output.log").stop()


def test_what_is_stopped_first_is_not_started(tmp_path: Path) -> None:
    each = Child("target t", [sys.executable, "-c", ""], {}, tmp_path / "output.log")
    each.stop()
    each.start()
    each._thread.join(STOPS)
    assert each._process is None and not each._thread.is_alive()
