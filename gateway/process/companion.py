"""The admin listener beside the gateway: a process of its own, started again when it dies, stopped with the gateway."""

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
from contextlib import suppress
from typing import Final

log = logging.getLogger("trunkline.admin")

COMMAND: Final = (sys.executable, "-P", "-m", "gateway", "admin", "serve")
PAUSE_SECONDS = (0.5, 30.0)
"""The first and the longest pause before another start."""
STEADY_SECONDS = 60.0
"""After so long a life the next pause is the first again."""
STOP_SECONDS = 12

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


class Companion:
    """One child process, whose output goes where ours goes."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._command, self._environment = list(command), dict(environment)
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._run, name="admin listener", daemon=True)

    def start(self) -> None:
        """Start it, and from now on whenever it has died.

        The first time in the caller's thread: should the caller fork meanwhile, as Granian does for its workers, the
        fork would inherit the pipe on which Popen waits for the child's exec, and keep it waiting for as long as it
        lives.
        """
        self._begin()
        self._thread.start()

    def stop(self) -> None:
        """Ask it to end, insist after 12 s, and wait."""
        with self._lock:
            self._stopping.set()
            process = self._process
        if process is not None and process.poll() is None:
            _end(process)
        if self._thread.ident is not None:
            self._thread.join(STOP_SECONDS)

    def kill(self) -> None:
        """End it now; may be called from a signal's handler while `stop` waits."""
        self._stopping.set()
        if self._process is not None:
            _signal(self._process, signal.SIGKILL)

    def _run(self) -> None:
        pause = PAUSE_SECONDS[0]
        while (process := self._process) is not None:
            born = time.monotonic()
            code = process.wait()
            if time.monotonic() - born > STEADY_SECONDS:
                pause = PAUSE_SECONDS[0]
            _signal(process, signal.SIGKILL)  # its worker may have outlived it, and would hold the port
            if self._stopping.is_set():
                return
            log.error("the admin listener ended with code %d; starting it again in %.1f s", code, pause)
            self._stopping.wait(pause)
            pause = min(2 * pause, PAUSE_SECONDS[1])
            self._begin()

    def _begin(self) -> None:
        with self._lock:  # so that stop() knows of every process there is
            self._process = None
            if not self._stopping.is_set():
                self._process = subprocess.Popen(
                    self._command,
                    env=self._environment,
                    stdin=subprocess.DEVNULL,
                    stdout=sys.stderr.fileno(),  # our stdout is for call records
                    start_new_session=True,  # Ctrl-C is for the gateway, which then stops its children in order
                    preexec_fn=_die_with_parent if _libc else None,
                )


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """What the admin process gets: ours and the settings, without the folder where the gateway's workers count."""
    return {name: value for name, value in {**os.environ, **settings}.items() if name != "PROMETHEUS_MULTIPROC_DIR"}


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask once: a second time would mean to hurry."""
    _signal(process, signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        log.warning("the admin listener does not stop; killing it")
        _signal(process, signal.SIGKILL)


def _die_with_parent() -> None:
    """Even a gateway that is killed leaves nothing running (Linux only)."""
    assert _libc is not None
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
