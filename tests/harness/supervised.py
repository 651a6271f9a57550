"""A supervisor and its workers in processes of their own; run as a program, it is that supervisor.

What happens to them is written to standard output, a line each, such as `opened PID`.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gateway.app import worker
from gateway.http.answer import Answer
from gateway.http.connection import Connection
from gateway.http.request import Request
from gateway.process import supervisor
from gateway.process.child import Child
from gateway.process.sockets import bind

CHILD = [
    sys.executable,
    "-S",
    "-c",
    "import os, time; os.write(1, b'launched %d\\n' % os.getpid()); time.sleep(600)",  # one write, as in `say`
]


class App:
    """Serves `/pid`, and `/hang`, which takes as long as it may.

    `opens`: what becomes of that: nothing, "slowly", "never", or "stubborn", which then ignores signals.
    """

    def __init__(self, accept: float, grace: float, opens: str, folder: Path) -> None:
        self.accept, self.grace = accept, grace
        self._opens, self._folder = opens, folder
        self._calls: set[asyncio.Task[None]] = set()

    @property
    def running(self) -> int:
        return len(self._calls)

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, say, "reloaded")
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGHUP])
        if self._opens == "never":
            raise RuntimeError("this cannot be opened")
        if self._opens == "stubborn":
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR1])
        say("opening")
        while self._opens == "slowly" and not (self._folder / "open").exists():
            await asyncio.sleep(0.005)
        say("opened")

    async def close(self) -> None:
        say("closed")

    async def serve(self, connection: Connection, request: Request, answer: Answer) -> None:
        body = b"%d" % os.getpid()
        if request.path == "/hang":
            task = connection.task
            assert task is not None
            self._calls.add(task)
            say("hangs")
            try:
                while not (self._folder / "go").exists():
                    await asyncio.sleep(0.005)
            except asyncio.CancelledError:
                task.uncancel()
                body = b"ended"
            finally:
                self._calls.discard(task)
        answer.start(200, [(b"content-length", b"%d" % len(body))])
        answer.end(body)

    def drain(self) -> None:
        say("drained")

    def end_calls(self) -> None:
        say("ended")
        for task in self._calls:
            task.cancel()


def say(what: str) -> None:
    os.write(1, f"{what} {os.getpid()}\n".encode())  # one write: many processes share this pipe


class Supervised:
    """A running supervisor."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.folder = folder
        self._out, self._err = folder / "out", folder / "err"
        with self._out.open("ab") as out, self._err.open("ab") as err:  # many processes write at its end
            given = json.dumps({"folder": str(folder), **options})
            self.process = subprocess.Popen([sys.executable, "-P", __file__, given], stdout=out, stderr=err)
        self.port = int(self.until("port")[0])

    def said(self, what: str) -> list[int]:
        """The ids of the processes that said so, in order."""
        lines = (line.split(" ") for line in self._out.read_text().splitlines())
        return [int(line[1]) for line in lines if line[0] == what]

    def until(self, what: str, number: int = 1) -> list[int]:
        """Until this was said so many times."""
        wait(lambda: len(self.said(what)) >= number or self.process.poll() is not None)
        assert len(self.said(what)) >= number, self.log()
        return self.said(what)

    def log(self) -> str:
        return self._err.read_text()

    def ask(self, path: str = "/pid") -> http.client.HTTPConnection:
        """Ask; the answer is the connection's."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request("GET", path)
        return connection

    def pid(self) -> int:
        """Of the worker that answers."""
        connection = self.ask()
        try:
            return int(connection.getresponse().read())
        finally:
            connection.close()

    def kill(self) -> None:
        """All of it, if it is still there."""
        for pid in {self.process.pid, *self.said("opening"), *self.said("launched")} - {0}:
            if alive(pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def supervised(folder: Path, **options: Any) -> Iterator[Supervised]:
    """A supervisor for as long as the block lasts; nothing of it may be left then."""
    running = Supervised(folder, **options)
    try:
        yield running
        wait(lambda: running.process.poll() is not None)
        wait(lambda: not any(map(alive, running.said("opening") + running.said("launched"))))
    finally:
        running.kill()


def wait(found: Callable[[], object]) -> None:
    """Until it has come to pass; the test's own time-out says when it never will."""
    while not found():
        time.sleep(0.005)


def exists(pid: int) -> bool:
    """Whether there is a process of this id, dead ones that their parent has not waited for counted as well."""
    return Path(f"/proc/{pid}").exists()


def alive(pid: int) -> bool:
    """Whether such a process runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def main(
    folder: str,
    workers: int = 1,
    patience: float = 30.0,
    last: float = 30.0,
    accept: float = 0.0,
    grace: float = 30.0,
    opens: str = "",
    launches: bool = False,
) -> int:
    """Be the supervisor; the exit code."""
    supervisor.PAUSE_SECONDS, supervisor.LAST_SECONDS = 0.05, last  # type: ignore[misc]
    sockets = bind("127.0.0.1", 0, workers) if workers == 1 else bind("127.0.0.1", free_port(), workers)
    os.write(1, b"port %d\n" % sockets[0].getsockname()[1])

    def work(bound: Any) -> None:
        worker.run(lambda: App(accept, grace, opens, Path(folder)), bound, 10.0)

    child = Child("a child", CHILD, os.environ, 1)
    if launches:
        child.start()
    try:
        return supervisor.Supervisor(work, sockets, patience).serve()
    finally:
        child.stop()


def free_port() -> int:
    (bound,) = bind("127.0.0.1", 0, 1)
    with bound:
        port: int = bound.getsockname()[1]
        return port


if __name__ == "__main__":
    sys.exit(main(**json.loads(sys.argv[1])))
