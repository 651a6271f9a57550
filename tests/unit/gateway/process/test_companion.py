"""The process beside the gateway: started again when it dies, stopped for good when asked to."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.process import companion
from gateway.process.companion import Companion, environment

# Says that it is there, by its process id; then stays.
STAY = "import os, sys, time; open(sys.argv[1], 'a').write(f'{os.getpid()}\\n'); time.sleep(600)"
# The same, with a child of its own that outlives it, and deaf to SIGTERM.
DEAF = (
    "import os, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "os.fork(); open(sys.argv[1], 'a').write(f'{os.getpid()}\\n'); time.sleep(600)"
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(companion, "PAUSE_SECONDS", (0.01, 0.02))
    monkeypatch.setattr(companion, "STOP_SECONDS", 1)


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Companion]]:
    """Starts a companion that runs a program."""
    started: list[Companion] = []

    class Stderr:
        """pytest's own has no file behind it."""

        def fileno(self) -> int:
            return 2

    monkeypatch.setattr(sys, "stderr", Stderr())

    def begin(program: str) -> Companion:
        started.append(Companion([sys.executable, "-c", program, str(tmp_path / "pids")], environment({})))
        started[-1].start()
        return started[-1]

    yield begin
    for each in started:
        each.stop()


def pids(folder: Path, count: int) -> list[int]:
    """The ids of all processes that were started, once there are so many."""
    deadline = time.monotonic() + 10
    while True:
        found = (folder / "pids").read_text().split() if (folder / "pids").exists() else []
        if len(found) >= count:
            return [int(text) for text in found]
        assert time.monotonic() < deadline, f"{len(found)} of {count}"
        time.sleep(0.01)


def lives(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def test_it_is_started_again_when_it_dies(
    start: Callable[[str], Companion], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        start(STAY)
        (first,) = pids(tmp_path, 1)
        os.kill(first, signal.SIGKILL)
        second = pids(tmp_path, 2)[1]
    assert second != first and lives(second)
    assert "ended with code -9; starting it again" in caplog.text


def test_stopped_it_stays_stopped(start: Callable[[str], Companion], tmp_path: Path) -> None:
    beside = start(STAY)
    (pid,) = pids(tmp_path, 1)
    beside.stop()
    assert not lives(pid)
    time.sleep(0.1)  # longer than the pause before another start
    assert pids(tmp_path, 1) == [pid]


def test_what_does_not_stop_is_killed_with_all_that_it_started(
    start: Callable[[str], Companion], tmp_path: Path
) -> None:
    beside = start(DEAF)
    both = pids(tmp_path, 2)
    beside.stop()
    deadline = time.monotonic() + 5
    while any(map(lives, both)):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_it_left_behind_is_ended_before_its_successor_comes(
    start: Callable[[str], Companion], tmp_path: Path
) -> None:
    start(DEAF)
    parent, child = sorted(pids(tmp_path, 2))
    os.kill(parent, signal.SIGKILL)
    pids(tmp_path, 4)
    assert not lives(child)


def test_stopping_what_was_never_started() -> None:
    Companion([sys.executable, "-c", ""], {}).stop()


def test_it_does_not_count_in_the_gateways_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "/somewhere")
    found = environment({"TRUNKLINE_ADMIN_PORT": "1"})
    assert "PROMETHEUS_MULTIPROC_DIR" not in found
    assert found["TRUNKLINE_ADMIN_PORT"] == "1" and found["PATH"] == os.environ["PATH"]
