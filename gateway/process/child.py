"""One process beside the gateway: started again when it dies, stopped with the gateway, and with it all it started."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

log = logging.getLogger("trunkline.process")

PAUSE_SECONDS = (0.5, 30.0)
"""The first and the longest pause before another start."""
STEADY_SECONDS = 60.0
"""After so long a life the next pause is the first again."""
STOP_SECONDS = 12.0
FORKING = threading.Lock()
"""Held while a process is made: a fork beside Popen would inherit the pipe on which Popen waits for its child's exec,
and keep it waiting for as long as that fork lives."""
TAIL_LINES = 5

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


class Child:
    """One supervised process.

    `name` is what the log calls it. `environment` is all that it gets. `output` is a file to add its output to, whose
    last lines are logged when it dies, or an open file descriptor.
    """

    def __init__(self, name: str, argv: Sequence[str], environment: Mapping[str, str], output: Path | int) -> None:
        self.name, self.argv = name, list(argv)
        self._environment, self._output = dict(environment), output
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._refusal = ""
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start it, and from now on whenever it has died."""
        self._begin()
        self._thread.start()

    def stop(self) -> None:
        """Ask it to end, once, as a second time would mean to hurry; insist after 12 s, and wait."""
        with self._lock:  # so that this knows of every process there is
            self._stopping.set()
            process = self._process
        if process is not None:
            if process.poll() is None:
                _signal_group(process, signal.SIGTERM)
                try:
                    process.wait(STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    log.warning("%s does not stop; killing it", self.name)
            _signal_group(process, signal.SIGKILL)  # also what it has started itself
        if self._thread.ident is not None:
            self._thread.join(STOP_SECONDS)

    def kill(self) -> None:
        """End it at once, without waiting; may be called by a signal's handler while `stop` waits."""
        self._stopping.set()
        process = self._process
        if process is not None and process.poll() is None:
            _signal_group(process, signal.SIGKILL)

    def _run(self) -> None:
        pause = PAUSE_SECONDS[0]
        while True:
            born = time.monotonic()
            reason = self._ended()
            if self._stopping.is_set():
                return
            if time.monotonic() - born > STEADY_SECONDS:
                pause = PAUSE_SECONDS[0]
            log.error("%s %s; starting it again in %.1f s%s", self.name, reason, pause, self._tail())
            if self._stopping.wait(pause):
                return
            pause = min(2 * pause, PAUSE_SECONDS[1])
            self._begin()

    def _begin(self) -> None:
        with self._lock, FORKING, ExitStack() as stack:
            self._process = None
            if self._stopping.is_set():
                return
            try:
                output = self._output
                self._process = subprocess.Popen(  # the operator's own command
                    self.argv,
                    env=self._environment,
                    stdin=subprocess.DEVNULL,
                    stdout=stack.enter_context(output.open("ab")) if isinstance(output, Path) else output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C is for the gateway, which then stops its children in order
                    preexec_fn=die_with_parent if _libc else None,
                )
            except OSError as error:
                self._refusal = f"cannot be started: {error}"
                return
            if self._stopping.is_set():  # `kill`, which does not wait for the lock, did not see it
                _signal_group(self._process, signal.SIGKILL)

    def _ended(self) -> str:
        """Wait for its end; why it has ended, for the log."""
        process = self._process
        if process is None:
            return self._refusal
        code = process.wait()
        _signal_group(process, signal.SIGKILL)  # what it left behind holds the port and memory of its successor
        return f"ended with code {code}"

    def _tail(self) -> str:
        if isinstance(self._output, Path):
            with suppress(OSError):
                lines = self._output.read_bytes()[-4000:].decode(errors="replace").splitlines()[-TAIL_LINES:]
                return "".join("\n    " + line for line in lines)
        return ""


def die_with_parent() -> None:
    """Have the kernel send this process SIGTERM when its parent dies, however that ends (Linux only)."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
