"""The main process keeps its workers alive, ends them in order, and leaves nothing behind."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from harness.supervised import Supervised, alive, exists, supervised, wait

from gateway.process import supervisor as module
from gateway.process.child import FORKING, Child
from gateway.process.sockets import bind
from gateway.process.supervisor import MOST_YOUNG_DEATHS, Supervisor


def end(running: Supervised, *numbers: signal.Signals) -> int:
    for number in numbers:
        running.process.send_signal(number)
    return running.process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_signal_ends_all_in_order(tmp_path: Path, number: signal.Signals, workers: int) -> None:
    with supervised(tmp_path, workers=workers) as running:
        pids = running.until("opened", workers)
        assert end(running, number) == 0
        assert sorted(running.said("drained")) == sorted(running.said("closed")) == sorted(pids)
        assert not any(map(exists, pids))


def test_a_worker_that_is_killed_is_replaced_and_nobody_notices(tmp_path: Path) -> None:
    with supervised(tmp_path, workers=2) as running:
        pids = set(running.until("opened", 2))
        for killed in pids:
            os.kill(killed, signal.SIGKILL)
        asked = [running.ask() for _ in range(8)]
        answered = {int(each.getresponse().read()) for each in asked}
        for each in asked:
            each.close()
        assert answered
        assert not answered & pids
        assert not any(map(exists, pids))
        told = r"a worker was ended by SIGKILL; starting another.* \(pid \d+, restart 1\)"
        assert re.search(told, running.log())
        running.until("opened", 4)
        assert end(running, signal.SIGTERM) == 0


def test_a_worker_that_cannot_live_ends_the_gateway(tmp_path: Path) -> None:
    with supervised(tmp_path, opens="never") as running:
        assert running.process.wait() == 1
        assert running.log().count("RuntimeError: this cannot be opened") == MOST_YOUNG_DEATHS
        assert running.log().count("a worker ended with code 1") == MOST_YOUNG_DEATHS


def test_calls_may_end_after_the_first_signal(tmp_path: Path) -> None:
    with supervised(tmp_path) as running:
        call = running.ask("/hang")
        (pid,) = running.until("hangs")
        running.process.send_signal(signal.SIGTERM)
        running.until("drained")
        (tmp_path / "go").touch()
        assert int(call.getresponse().read()) == pid
        call.close()
        assert running.process.wait() == 0


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_the_second_signal_ends_all_at_once(tmp_path: Path, first: signal.Signals, second: signal.Signals) -> None:
    with supervised(tmp_path, launches=True) as running:
        call = running.ask("/hang")
        running.until("hangs")
        running.process.send_signal(first)
        running.until("drained")
        assert end(running, second) == 128 + second
        assert running.said("closed") == []
        with pytest.raises((ConnectionResetError, ConnectionError)):
            call.getresponse()
        call.close()


def test_workers_that_do_not_end_are_killed(tmp_path: Path) -> None:
    with supervised(tmp_path, opens="stubborn", patience=0.05, last=0.05) as running:
        running.until("opened")
        assert end(running, signal.SIGTERM) == 0
        assert "killing workers that do not end" in running.log()


def test_a_hangup_is_for_the_workers(tmp_path: Path) -> None:
    with supervised(tmp_path, workers=2) as running:
        pids = running.until("opened", 2)
        running.process.send_signal(signal.SIGHUP)
        assert sorted(running.until("reloaded", 2)) == sorted(pids)
        assert end(running, signal.SIGTERM) == 0


def test_workers_end_in_order_when_the_main_process_is_killed(tmp_path: Path) -> None:
    with supervised(tmp_path, workers=2, launches=True) as running:
        running.until("opened", 2)
        call = running.ask("/hang")
        running.until("hangs")
        running.process.kill()
        wait(lambda: len(set(running.said("drained"))) == 2)  # each once for each thread that the main process had
        (tmp_path / "go").touch()
        assert call.getresponse().read()
        call.close()
        wait(lambda: len(running.said("closed")) == 2)
        assert running.log() == ""


def test_nobody_connects_any_more_while_the_last_call_of_one_worker_ends(tmp_path: Path) -> None:
    """No worker and not the main process keeps another's socket open."""
    with supervised(tmp_path, workers=2) as running:
        running.until("opened", 2)
        call = running.ask("/hang")
        (busy,) = running.until("hangs")
        running.process.send_signal(signal.SIGTERM)
        running.until("closed")

        def refused() -> bool:
            try:
                running.ask().close()
            except ConnectionRefusedError:
                return True
            return False

        wait(refused)
        assert alive(busy)
        (tmp_path / "go").touch()
        assert int(call.getresponse().read()) == busy
        call.close()
        assert running.process.wait() == 0


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_a_child_gets_neither_sockets_nor_blocked_signals(tmp_path: Path) -> None:
    """Neither the first nor, when that has died, the next, which another thread starts."""
    with supervised(tmp_path, launches=True) as running:
        running.until("opened")
        (first,) = running.until("launched")
        given(first)
        os.kill(first, signal.SIGKILL)
        given(running.until("launched", 2)[1])
        assert end(running, signal.SIGTERM) == 0


def status(process: str) -> dict[str, str]:
    return dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())


def given(pid: int) -> None:
    """Of what this process was given, nothing is what it should not have."""
    lines, ours = status(str(pid)), status("self")
    ignored = int(lines["SigIgn"], 16) & ~int(ours["SigIgn"], 16)  # a suite in the background ignores SIGINT itself
    assert int(lines["SigBlk"], 16) == 0
    assert not any(ignored >> (number - 1) & 1 for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM))
    files = {os.readlink(each) for each in Path(f"/proc/{pid}/fd").iterdir()}
    assert not any(file.startswith(("socket:", "pipe:")) for file in files), files


def test_no_two_processes_are_made_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker forked beside Popen would keep Popen waiting for as long as it lives."""
    held: list[bool] = []

    def fork() -> int:
        held.append(FORKING.locked())
        return 4242

    def popen(*_: object, **__: object) -> None:
        held.append(FORKING.locked())
        raise OSError

    monkeypatch.setattr(os, "fork", fork)
    monkeypatch.setattr(subprocess, "Popen", popen)
    child = Child("a child", ["true"], {}, tmp_path / "log")
    (bound,) = bind("127.0.0.1", 0, 1)
    with bound:
        Supervisor(lambda _: None, [bound], 0.0)._look()
    child.start()
    child.stop()
    assert held[:2] == [True, True]
    assert not FORKING.locked()


def test_a_worker_that_cannot_be_forked_now_is_forked_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fork() -> int:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.0)
    (bound,) = bind("127.0.0.1", 0, 1)
    with bound:
        supervisor = Supervisor(lambda _: None, [bound], 0.0)
        with monkeypatch.context() as full:
            full.setattr(os, "fork", fork)
            for _ in range(2 * MOST_YOUNG_DEATHS):
                assert supervisor._look()
        assert "no worker can be started now: [Errno 11]" in caplog.text
        monkeypatch.setattr(os, "fork", lambda: 4242)
        assert supervisor._look()
        assert supervisor._workers[0].pid == 4242
