"""Targets that are child processes: started, restarted with back-off when they die, stopped with the gateway."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from backends.api import Launchable
from gateway.config import Table, TargetSpec

log = logging.getLogger("trunkline.launch")

BACKOFF_SECONDS = (0.5, 30.0)
"""The first and the longest pause before a restart; a child that lived a minute starts again from the first."""
STEADY_SECONDS = 60.0
STOP_SECONDS = 10.0
TAIL_LINES = 5

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


class Child:
    """One supervised process. Its output goes to a file, whose last lines are logged when it dies."""

    def __init__(self, name: str, argv: Sequence[str], environment: Mapping[str, str], output: Path) -> None:
        self.name, self._argv, self._environment, self._output = name, list(argv), environment, output
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._run, name=f"launch {name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ask the process group to end, insist after 10 s, and wait."""
        self._stopping.set()
        process = self._process
        if process is not None and process.poll() is None:
            _signal_group(process, signal.SIGTERM)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                log.warning("target %s does not stop; killing it", self.name)
        if process is not None:
            _signal_group(process, signal.SIGKILL)  # what it may have started itself
        if self._thread.ident is not None:
            self._thread.join(STOP_SECONDS)

    def kill(self) -> None:
        """End the process group at once, without waiting; may be called by a signal handler while `stop` waits."""
        self._stopping.set()
        process = self._process
        if process is not None and process.poll() is None:
            _signal_group(process, signal.SIGKILL)

    def _run(self) -> None:
        pause = BACKOFF_SECONDS[0]
        while not self._stopping.is_set():
            born = time.monotonic()
            reason = self._once()
            if self._stopping.is_set():
                return
            if time.monotonic() - born > STEADY_SECONDS:
                pause = BACKOFF_SECONDS[0]
            log.error("target %s %s; starting it again in %.1f s\n%s", self.name, reason, pause, self._tail())
            self._stopping.wait(pause)
            pause = min(2 * pause, BACKOFF_SECONDS[1])

    def _once(self) -> str:
        try:
            with self._output.open("ab") as output:
                self._process = subprocess.Popen(  # the operator's own command
                    self._argv,
                    env={**os.environ, **self._environment},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C is for the gateway, which then stops its children in order
                    preexec_fn=_die_with_parent if _libc else None,
                )
        except OSError as error:
            return f"cannot be started: {error}"
        if self._stopping.is_set():  # stop() came between the check and the start
            _signal_group(self._process, signal.SIGKILL)
        code = self._process.wait()
        _signal_group(self._process, signal.SIGKILL)  # what it left behind holds the port and memory of its successor
        return f"ended with code {code}"

    def _tail(self) -> str:
        with suppress(OSError):
            lines = self._output.read_bytes()[-4000:].decode(errors="replace").splitlines()[-TAIL_LINES:]
            return "\n".join("    " + line for line in lines)
        return ""


class Launcher:
    """All children of a table. `urls` tells where each target will answer, by its name, before it does."""

    def __init__(self, table: Table, adapters: Callable[[str], object]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="trunkline-launch-")
        self.urls: dict[str, str] = {}
        self._children: list[Child] = []
        for path, _, target in table.targets():
            if target.launch is None:
                continue
            port = free_port()
            argv, environment = _command(target, str(path[1]), port, adapters)
            output = Path(self._folder.name) / f"{target.name.replace('/', '_')}.log"
            self._children.append(Child(target.name, argv, environment, output))
            self.urls[target.name] = f"http://127.0.0.1:{port}"
            log.info("target %s: its output goes to %s", target.name, output)

    def start(self) -> None:
        for child in self._children:
            child.start()

    def stop(self) -> None:
        stoppers = [threading.Thread(target=child.stop) for child in self._children]
        for stopper in stoppers:
            stopper.start()
        for stopper in stoppers:
            stopper.join()
        self._folder.cleanup()

    def kill(self) -> None:
        """End all children at once, without waiting; `stop`, if it waits for them, returns by that."""
        for child in self._children:
            child.kill()


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _command(
    target: TargetSpec, route: str, port: int, adapters: Callable[[str], object]
) -> tuple[list[str], Mapping[str, str]]:
    launch = target.launch
    assert launch is not None
    if launch.argv is not None:
        return [word.replace("{port}", str(port)) for word in launch.argv], launch.environment
    adapter = adapters(target.backend)
    assert isinstance(adapter, Launchable) and launch.model is not None
    argv, environment = adapter.launch(launch.model, target.model or route, port)
    return argv, {**environment, **launch.environment}


def _die_with_parent() -> None:
    """Even a gateway that is killed leaves nothing running (Linux only)."""
    assert _libc is not None
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
