"""A worker that is told to end does so in order, at whatever moment it is told."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import pytest
from harness.supervised import Supervised, supervised, wait

from gateway.app.worker import MOST_FILES, allow_files


def finish(running: Supervised) -> None:
    """Have the supervisor end, which has replaced the worker meanwhile."""
    running.process.send_signal(signal.SIGTERM)
    running.process.wait()


def ended(running: Supervised) -> None:
    """Until the first worker has ended, in order."""
    wait(lambda: "a worker " in running.log())
    assert "a worker ended with code 0" in running.log()


def refused(running: Supervised) -> bool:
    try:
        running.ask().close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_worker_that_is_opening_ends_once_it_has_opened(tmp_path: Path, number: signal.Signals) -> None:
    with supervised(tmp_path, opens="slowly") as running:
        (pid,) = running.until("opening")
        os.kill(pid, number)
        assert running.until("drained") == [pid]
        (tmp_path / "open").touch()
        ended(running)
        assert running.said("closed") == [pid]
        finish(running)


@pytest.mark.parametrize("numbers", [[signal.SIGTERM], [signal.SIGTERM] * 2, [signal.SIGTERM, signal.SIGUSR1]])
def test_calls_under_way_are_answered_and_idle_connections_closed(
    tmp_path: Path, numbers: list[signal.Signals]
) -> None:
    with supervised(tmp_path) as running:
        idle, call = running.ask(), running.ask("/hang")
        assert idle.getresponse().read()
        (pid,) = running.until("hangs")
        for number in numbers:
            os.kill(pid, number)
        assert idle.sock is not None
        assert idle.sock.recv(1) == b""
        assert running.said("closed") == []
        (tmp_path / "go").touch()
        assert int(call.getresponse().read()) == pid
        ended(running)
        assert running.said("closed") == [pid]
        for each in (idle, call):
            each.close()
        finish(running)


def test_it_accepts_calls_for_a_while_and_none_when_told_so(tmp_path: Path) -> None:
    with supervised(tmp_path, accept=600) as running:
        call = running.ask("/hang")
        (pid,) = running.until("hangs")
        running.process.send_signal(signal.SIGTERM)
        running.until("drained")
        assert running.pid() == pid
        os.kill(pid, signal.SIGUSR1)
        wait(lambda: refused(running))
        (tmp_path / "go").touch()
        assert int(call.getresponse().read()) == pid
        call.close()
        assert running.process.wait() == 0


def test_calls_that_take_longer_than_the_grace_are_ended(tmp_path: Path) -> None:
    with supervised(tmp_path, grace=0.05) as running:
        call = running.ask("/hang")
        running.until("hangs")
        running.process.send_signal(signal.SIGTERM)
        assert call.getresponse().read() == b"ended"
        call.close()
        assert running.process.wait() == 0
        assert "ending 1 calls that took longer than the grace of 0.05 s" in running.log()
        assert running.said("closed")


def test_a_terminal_s_interrupt_is_not_for_workers(tmp_path: Path) -> None:
    with supervised(tmp_path) as running:
        pid = running.pid()
        for _ in range(3):
            os.kill(pid, signal.SIGINT)
            assert running.pid() == pid
        finish(running)
        assert running.said("drained") == [pid]


def test_a_worker_may_have_as_many_files_as_the_system_lets_it() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(MOST_FILES, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        allow_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (most, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        allow_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (most, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
