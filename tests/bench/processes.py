"""Server processes of the bench: started on one core, read through /proc, stopped with all their children."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
STOP_SECONDS = 20.0
POLL_SECONDS = 0.1
PSS = re.compile(r"^Pss:\s+(\d+) kB", re.MULTILINE)


class NotReady(Exception):
    """A server ended, or did not answer in time; the message carries the end of its log."""


@dataclass(frozen=True, slots=True)
class Stat:
    """The fields of /proc/PID/stat that the bench reads."""

    pid: int
    parent: int
    session: int
    started: int
    cpu_ticks: int
    rss_bytes: int


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of a process tree; pss splits each shared page between those who share it, rss counts it for each."""

    rss: int
    pss: int
    processes: int


def read_stat(pid: int) -> Stat | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    times = (int(each) for each in fields[11:15])  # its own, and those of children that have ended
    return Stat(pid, int(fields[1]), int(fields[3]), int(fields[19]), sum(times), int(fields[21]) * PAGE_BYTES)


def all_stats() -> list[Stat]:
    pids = sorted(int(name) for name in os.listdir("/proc") if name.isdecimal())
    return [stat for pid in pids if (stat := read_stat(pid)) is not None]


def read_pss(pid: int) -> int:
    try:
        found = PSS.search(Path(f"/proc/{pid}/smaps_rollup").read_text())
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0
    return int(found[1]) * 1024 if found else 0


def busy_seconds(core: int) -> float:
    """How long the core has not been idle, time that the host gave to others included."""
    _, user, nice, system, _, _, *rest = next(
        line for line in Path("/proc/stat").read_text().splitlines() if line.startswith(f"cpu{core} ")
    ).split()
    return sum(int(ticks) for ticks in (user, nice, system, *rest[:3])) / TICKS_A_SECOND


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """Pin this thread, and so every process it starts meanwhile."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Server:
    """One server process with whatever it starts itself."""

    def __init__(self, command: Sequence[str], core: int, log: Path, environment: Mapping[str, str]) -> None:
        self._log = log
        self._core = core
        with log.open("wb") as output, on_core(core):
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # call records: without a bound
                stderr=output,
                start_new_session=True,
                env=dict(environment),
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def tree(self) -> list[Stat]:
        """The process, its descendants, and what they left behind in its session."""
        root = self._process.pid
        members: dict[int, Stat] = {}
        stats = all_stats()
        while True:
            more = {
                stat.pid: stat
                for stat in stats
                if stat.pid not in members and (root in (stat.pid, stat.session) or stat.parent in members)
            }
            if not more:
                return list(members.values())
            members |= more

    def cpu_seconds(self) -> float:
        return sum(stat.cpu_ticks for stat in self.tree()) / TICKS_A_SECOND

    def other_work_seconds(self) -> float:
        """How long its core was busy with anything else."""
        return busy_seconds(self._core) - self.cpu_seconds()

    def rss(self) -> int:
        return sum(stat.rss_bytes for stat in self.tree())

    def memory(self) -> Memory:
        tree = self.tree()
        return Memory(sum(stat.rss_bytes for stat in tree), sum(read_pss(stat.pid) for stat in tree), len(tree))

    def wait_for(self, is_ready: Callable[[], bool], seconds: float, tick: Callable[[], None]) -> None:
        deadline = time.monotonic() + seconds
        while not is_ready():
            if self._process.poll() is not None:
                raise NotReady(f"ended with status {self._process.returncode}\n{self.last_words()}")
            if time.monotonic() > deadline:
                raise NotReady(f"not ready after {seconds:.0f} s\n{self.last_words()}")
            tick()
            time.sleep(POLL_SECONDS)

    def last_words(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-20:])

    def stop(self) -> None:
        """Ask the process to end; kill what is left of its tree after a while."""
        known = {(stat.pid, stat.started) for stat in self.tree()}
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        finally:
            for stat in all_stats():
                if stat.session == self._process.pid or (stat.pid, stat.started) in known:
                    with suppress(ProcessLookupError):
                        os.kill(stat.pid, signal.SIGKILL)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def get(port: int, path: str) -> str | None:
    """The body of an answer with status 200 on a loopback port."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read().decode(errors="replace")
        return body if response.status == 200 else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
